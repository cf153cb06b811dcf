"""Data: one LightningDataModule per kind of source, all with the same endless, resumable batches."""
