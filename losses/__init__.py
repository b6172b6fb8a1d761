"""One objective a file; every loss returns one value an example. Nothing here is global."""
