//! The migration itself: policy, on top of the leaves.
//!
//! [`source`] and [`destination`] are the two roles; what both need lies beside them. The decisions are
//! pure functions ([`convergence`], [`reconcile`], [`tap_account`]); everything that was set up is undone by
//! [`rollback`].

pub mod aftermath;
pub mod conntrack;
pub mod convergence;
pub mod destination;
mod diary;
pub(crate) mod error;
pub(crate) mod fit;
pub mod ledger;
mod measured;
pub mod message;
mod neighbours;
pub(crate) mod nic;
pub(crate) mod node;
pub mod progress;
mod put_back;
mod quiet;
pub mod reconcile;
pub mod report;
pub mod rollback;
pub mod several;
pub mod shared;
pub mod source;
pub mod storage;
pub mod summary;
pub mod tap_account;
mod tap_watch;
mod terminal;

pub use error::{MigrateError, chain};
pub use measured::measured;
