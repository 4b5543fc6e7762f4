"""What a run leaves behind: the journal, which is the truth, and the folder around it."""
