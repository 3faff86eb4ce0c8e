//! The session between the two nodes.
