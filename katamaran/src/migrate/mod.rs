//! The migration itself: policy, on top of the leaves.

pub mod convergence;
pub mod ledger;
pub mod message;
pub mod progress;
pub mod report;
pub mod rollback;
pub mod summary;
pub mod tap_account;
