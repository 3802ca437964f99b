//! The mechanism driver's binds and deletes, as ML2 asks for them, against nodes and their agents.
