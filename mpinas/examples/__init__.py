"""Tasks from outside: written as a user would write one, registered as entry points, named nowhere in the core."""
