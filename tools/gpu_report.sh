#!/usr/bin/env bash
# Check and measure everything that needs a GPU, in ten minutes, and write one report in Markdown.
#
#   tools/gpu_report.sh [REPORT]                      (default: output/gpu_report.md)
#   PYTHON=/path/to/python tools/gpu_report.sh        with another interpreter than .venv/bin/python
#
# It first compiles the operators for this machine's GPU; if that fails, their benchmark fails too. Without a GPU, or
# without a program that a step needs, the report says what was left out and why. The exit status is the number of
# steps that failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

report=$(realpath -m "${1:-output/gpu_report.md}")
if ! python=$(command -v "${PYTHON:-.venv/bin/python}"); then
  echo "error: there is no ${PYTHON:-.venv/bin/python}: run \`make env\` or set PYTHON to an interpreter with torch" >&2
  exit 1
fi
python=$(realpath -s "$python")
mkdir -p "$(dirname "$report")"
export PYTHONPATH=$PWD/projects/CLoCKDistill${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
failures=0
deadline=$((SECONDS + 590))
gpu=$("$python" -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')" 2> /dev/null)

# step NEEDS TITLE SECONDS COMMAND...: run a command for at most so long and report it. NEEDS: gpu, any or a program.
step() {
  local needs=$1 title=$2 limit=$3 output start=$SECONDS status
  shift 3
  echo "$title" >&2
  printf '\n## %s\n\n   %s\n\n' "$title" "$(printf ' %q' "${@/#$python/python}")"
  if [[ $needs != any && -z $gpu ]]; then
    echo "Left out: there is no GPU."
  elif [[ $needs != any && $needs != gpu ]] && ! command -v "$needs" > /dev/null; then
    echo "Left out: $needs is not installed."
  elif ((deadline - SECONDS < 5)); then
    echo "Left out: the ten minutes are over."
  else
    output=$(timeout -k 5 "$((limit < deadline - SECONDS ? limit : deadline - SECONDS))" "$@" 2>&1)
    status=$?
    printf '~~~\n%s\n~~~\n\n' "$(tail -n 40 <<< "$output" | cut -c -240)"
    case $status in
      0) printf 'Passed' ;;
      124 | 137) printf '**Stopped at its time limit**' && ((failures++)) ;;
      *) printf '**Failed with exit status %s**' "$status" && ((failures++)) ;;
    esac
    echo " after $((SECONDS - start)) s."
  fi
}

{
  echo "# GPU report"
  commit=$(git describe --always --dirty 2> /dev/null)
  printf '\n%s, %s, commit %s\n' "${gpu:-no GPU}" "$(date -u '+%F %T UTC')" "${commit:-unknown}"
  step nvidia-smi "Card" 20 nvidia-smi
  step gpu "Build" 150 "$python" setup.py -q build_ext --inplace
  step any "Versions" 60 "$python" -m clockdistill.collect_env
  step gpu "Tests of the operator" 60 "$python" -m pytest tests/layers/test_ms_deform_attn.py -k cuda
  step gpu "Tests of the detectors" 60 "$python" -m pytest tests/modeling/test_gpu.py
  for tool in memcheck racecheck; do
    step compute-sanitizer "compute-sanitizer, $tool" 60 \
      compute-sanitizer --tool "$tool" --error-exitcode 1 --report-api-errors no \
      "$python" -m pytest tests/layers/test_ms_deform_attn.py -k "cuda and (blocks or lower_precision or deterministic)"
  done
  step gpu "The operator's speed" 40 "$python" tools/benchmark_operator.py --device cuda
  for options in "" "--precision bfloat16" "--precision bfloat16 --compile"; do
    # shellcheck disable=SC2086  # words
    step gpu "Training and distillation${options:+, $options}" 180 "$python" tools/benchmark_models.py --device cuda \
      --models dino dino_r50_to_r18 $options
  done
  step gpu "Demo" 180 "$python" tools/demo.py
  printf '\nFailed steps: %s. Everything took %s s.\n' "$failures" "$SECONDS"
} > "$report"

echo "$report" >&2
exit "$failures"
