"""What happens around a training step: counting, averaging, scoring, drawing, saving, ending."""
