train = dict(
    output_dir="./output",
    # our own checkpoint, one of Detectron2's model zoo, or a torchvision ResNet for the backbone
    init_checkpoint="",
    # seeds all random number generators; negative for a random seed, with which --resume is not exact
    seed=0,
    max_iter=90000,
    device="cuda",  # falls back to the CPU
    # batches per iteration, whose gradients are added up
    accumulate=1,
    # maximum gradient norm, as in DETR (arXiv:2005.12872, A.4); null turns clipping off
    clip_grad=0.1,
    # steps in a row whose loss or gradient is NaN or infinite, after which the training ends; they change no weights
    max_nonfinite_steps=10,
    # mixed precision, in evaluation and predict.py too
    amp=dict(enabled=False, dtype="bfloat16"),
    ema=dict(enabled=False, decay=0.9998),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=5),
    eval_period=5000,
    log_period=20,
    # True refuses labels that would be repaired: boxes that exceed the image, are empty or repeated, wrong image sizes
    strict_data=False,
    # True leaves out images that cannot be read, if they are at most 1 % of a dataset
    skip_bad_images=False,
    # for --eval-only and predict.py: torch.compile, which takes a while for each size of images
    compile=False,
    # for --eval-only: number of test images to time, and rounds over them; null turns timing off
    benchmark=dict(images=10, rounds=5),
)
