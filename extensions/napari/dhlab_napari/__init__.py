"""dhlab in napari: a reader, writers, samples and dock widgets; the one room of napari and Qt."""
