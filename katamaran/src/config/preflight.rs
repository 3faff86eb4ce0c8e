//! What `katamaran preflight` is to look at: the flags of a migration, none of which has to be there.

use super::{
    DestinationConfig, Needed, SourceConfig, UsageError, destination, invalid_mode, source,
};
use crate::cli::{MigrateArgs, Switch};

/// A node that may become a source, a destination, or either. A `qmp` that was not given is an empty path, and
/// lists of addresses may be empty.
#[derive(Debug, Clone)]
pub struct PreflightConfig {
    pub source: Option<SourceConfig>,
    pub destination: Option<DestinationConfig>,
}

impl PreflightConfig {
    /// Nothing tells which side this node would be: what belongs to a VM and to its way is looked at where it is
    /// given, and not missed where it is not.
    #[must_use]
    pub fn is_node_only(&self) -> bool {
        self.source.is_some() && self.destination.is_some()
    }

    /// The VM's connections would move with it.
    #[must_use]
    pub fn carries_connections(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.conntrack)
    }

    /// Checks what was typed. Without `--mode` the flags of one side stand for it; without any of them, the node is
    /// looked at as both.
    ///
    /// # Errors
    /// Everything that is wrong, in one error.
    pub fn from_args(args: &MigrateArgs) -> Result<Self, UsageError> {
        let mut problems = Vec::new();
        let (as_source, as_destination) = match args.mode.as_deref() {
            Some("source") => (true, false),
            Some("dest") => (false, true),
            Some(other) => {
                problems.push(invalid_mode(other));
                (false, false)
            }
            None if is_source(args) => (true, false),
            None if args.listen.is_some() => (false, true),
            None => (true, true),
        };
        let mut both = Self {
            source: None,
            destination: None,
        };
        if as_source {
            both.source = source(args, Needed::Nothing, &mut problems);
        }
        if as_destination {
            let mut more = Vec::new();
            both.destination = destination(args, Needed::Nothing, &mut more);
            // What both sides find wrong is told once.
            more.retain(|problem| !problems.contains(problem));
            problems.append(&mut more);
        }
        if problems.is_empty() {
            Ok(both)
        } else {
            Err(UsageError { problems })
        }
    }
}

/// Flags that only a source has.
fn is_source(args: &MigrateArgs) -> bool {
    !args.dest_ip.is_empty()
        || !args.vm_ip.is_empty()
        || args.redirect_dev.is_some()
        || args.max_bandwidth.is_some()
        || args.bandwidth.is_some()
        || args.verify_storage
        || args.auto_converge
        || args.conntrack == Switch::Off
        || args.pause_limit.is_some()
        || args.migration_timeout.is_some()
        || !args.trust_shared_volume.is_empty()
}
