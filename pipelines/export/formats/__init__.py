"""Layouts of an export, one file each; the file's name is the layout's, with - for _."""
