//! Connection tracking entries of one network namespace, over ctnetlink: read them, add them, remove
//! them.
//!
//! A leaf module: it knows nothing of migrations. Its parts:
//!
//! | module | what |
//! |---|---|
//! | [`entry`] | an entry and what can be said of it alone |
//! | [`table`] | [`Table`]: the kernel's table, as one netlink socket sees it |
//! | [`listing`] | all of its entries, or those of some addresses |
//! | [`news`] | [`News`]: connections that have just begun |
//! | [`trial`] | what this kernel can do of all that |
//! | `message` | entries as netlink messages, and back |
//! | `socket` | netlink sockets |
//! | `attribute` | netlink attributes |
//!
//! Written on `netlink-packet-core` and `netlink-sys`: no crate knows the attributes that it takes to *create* an
//! entry with its translation, zone, labels, helper and adjustments of sequence numbers.

mod attribute;
pub mod entry;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod listing;
mod message;
pub mod news;
mod socket;
pub mod table;
pub mod trial;

pub use entry::{Entry, Flow};
pub use error::ConntrackError;
pub use listing::{Family, Fill, Listing};
pub use news::{Begun, News};
pub use table::{Added, Existing, Refusal, Table, is_tracking};
pub use trial::{Trial, try_entries};
