"""Lists, reads, makes and changes the clips of a corpus. Features and training are not here."""
