"""Schedules, parametrisations and samplers of diffusion."""
