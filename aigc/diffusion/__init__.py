"""Schedules, parametrisations, samplers and guides of diffusion."""
