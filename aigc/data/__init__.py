"""Data: one LightningDataModule for each kind of source, all with the same endless, resumable batches."""
