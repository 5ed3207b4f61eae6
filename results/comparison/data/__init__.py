"""The images: named sets, folders, archives, databases, and the batches that training reads."""
