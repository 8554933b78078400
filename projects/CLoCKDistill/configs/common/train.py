train = dict(
    output_dir="./output",
    # a checkpoint of ours, of Detectron2's model zoo, or a torchvision ResNet for the backbone
    init_checkpoint="",
    # of all random numbers; -1 draws one
    seed=0,
    max_iter=90000,
    device="cuda",  # the CPU where there is none
    # largest norm of the gradient, as in DETR (arXiv:2005.12872, A.4); null does not clip
    clip_grad=0.1,
    amp=dict(enabled=False, dtype="bfloat16"),
    ema=dict(enabled=False, decay=0.9998),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=5),
    eval_period=5000,
    log_period=20,
    # of --eval-only: images of the test set that are timed, and how often each; null measures no time
    benchmark=dict(images=10, rounds=5),
)
