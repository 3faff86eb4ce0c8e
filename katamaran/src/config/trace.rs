//! `katamaran trace`.

use std::net::IpAddr;
use std::time::Duration;

use crate::cli::TraceArgs;

use super::{Needed, UsageError, addresses};

/// A trace that can be run.
#[derive(Debug, Clone)]
pub struct TraceConfig {
    /// Canonical, without duplicates.
    pub vm_ips: Vec<IpAddr>,
    pub duration: Option<Duration>,
    /// End after so many drops were told.
    pub count: Option<u64>,
    pub json: bool,
}

impl TraceConfig {
    /// Checks what was typed.
    ///
    /// # Errors
    /// Everything that is wrong, in one error.
    pub fn from_args(args: &TraceArgs) -> Result<Self, UsageError> {
        let mut problems = Vec::new();
        let vm_ips = addresses(
            "--vm-ip",
            "the VM's address",
            &args.vm_ip,
            Needed::All,
            &mut problems,
        );
        for (flag, value) in [("--duration", args.duration), ("--count", args.count)] {
            if value == Some(0) {
                problems.push(format!("{flag} 0: nothing would be told"));
            }
        }
        if problems.is_empty() {
            Ok(Self {
                vm_ips,
                duration: args.duration.map(Duration::from_secs),
                count: args.count,
                json: args.json,
            })
        } else {
            Err(UsageError { problems })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(vm_ip: &[&str]) -> TraceArgs {
        TraceArgs {
            vm_ip: vm_ip.iter().map(|text| (*text).to_owned()).collect(),
            duration: None,
            count: None,
            json: false,
            log_level: "warn".to_owned(),
        }
    }

    #[test]
    fn addresses_of_both_families_are_taken() {
        let config = TraceConfig::from_args(&args(&["10.0.0.5", "fd00::5"])).unwrap();
        assert_eq!(config.vm_ips.len(), 2);
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let wrong = TraceArgs {
            duration: Some(0),
            count: Some(0),
            ..args(&["10.0.0.300", "127.0.0.1"])
        };
        let error = TraceConfig::from_args(&wrong).unwrap_err().to_string();
        for word in ["10.0.0.300", "127.0.0.1", "--duration 0", "--count 0"] {
            assert!(error.contains(word), "{error}");
        }
        assert!(TraceConfig::from_args(&args(&[])).is_err());
    }
}
