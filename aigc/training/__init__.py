"""Training: fit, trainer, launch over devices, callbacks, loggers and precision."""
