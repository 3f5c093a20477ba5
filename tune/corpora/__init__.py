"""The clips of a corpus: how they are listed, read, made and changed. Features and training are not here."""
