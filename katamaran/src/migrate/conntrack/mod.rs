//! The VM's connections, as the nodes' kernels track them.
//!
//! A node that translates addresses (a service's to the VM's, the VM's to its own) remembers each connection, and
//! may know only by its memory that a packet in the middle of one belongs to it. When the VM moves, that memory
//! has to move, too. But not all of it:
//!
//! | connection | translated by | after the migration | the destination is told |
//! |---|---|---|---|
//! | to the VM's own address | nobody | nobody | the entry as it is |
//! | to a service's address, from elsewhere; answers do not pass the source | source | destination | the entry as it is, with its translation |
//! | to a service's or the source's address, from behind the source, or with the source's own address as the client's | source | still the source, which gets the answers | the connection as the VM sees it |
//! | from the VM, translated | source | destination | the entry as it is |
//!
//! In the third case the destination must not know the original: it would translate answers that the source
//! is going to translate, and take what the source has translated for another connection with the same answers.
//!
//! An entry whose own translation uses an address of the source node (a masqueraded connection of the VM, a node port
//! whose clients are seen by their own address) works as long as the source redirects: packets for that address go
//! to the source for ever. Such connections are counted ([`report::ConntrackReport::bound_to_source`]).
//!
//! The source's entries are left to the kernel's timeouts: packets may still come there, and a flush cuts
//! connections.
//!
//! [`view`] decides what the destination is told, [`book`] what it has to be told again. The source reads its table
//! while RAM is copied and once more when the VM has stopped, beside the rest of the copy; the destination adds what it is
//! told before any held packet is released, and removes it again if the migration is given up.

pub(crate) mod book;
pub mod report;
pub(crate) mod view;
pub mod wire;
