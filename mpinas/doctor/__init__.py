"""`mpinas doctor`: would a search work here? Facts are gathered, judged, shown. Only a child starts MPI."""
