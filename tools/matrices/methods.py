"""What takes the place of the losses of a distillation config, or overrides of that config, by the method's name."""

from ...projects.CLoCKDistill.configs.common.methods import fgd, fitnets, mgd

methods = dict(
    clockdistill=[],
    fitnets=fitnets,
    fgd=fgd,
    mgd=mgd,
)
