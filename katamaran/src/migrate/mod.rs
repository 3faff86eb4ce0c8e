//! The migration itself: policy, on top of the leaves.

pub mod convergence;
pub mod ledger;
pub mod rollback;
pub mod tap_account;
