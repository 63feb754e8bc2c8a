"""A store of photos and label maps from which windows are decoded; docs/store.md describes the format."""
