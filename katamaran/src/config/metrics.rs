//! `--metrics-listen` and `--metrics-file`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::cli::MigrateArgs;

/// Where metrics go, if anywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MetricsConfig {
    pub listen: Option<SocketAddr>,
    /// Ends in `.prom`.
    pub file: Option<PathBuf>,
}

impl MetricsConfig {
    pub(super) fn from_args(args: &MigrateArgs, problems: &mut Vec<String>) -> Self {
        let listen = args.metrics_listen.as_deref().and_then(|text| {
            text.parse().ok().or_else(|| {
                problems.push(format!(
                    "invalid --metrics-listen {text:?}: it is an address and a port, such as 127.0.0.1:9478 or [::]:9478"
                ));
                None
            })
        });
        if let Some(file) = &args.metrics_file
            && !is_prom(file)
        {
            problems.push(format!(
                "--metrics-file {}: its name has to end in .prom, node_exporter's textfile collector passes over all others",
                file.display()
            ));
        }
        Self {
            listen,
            file: args.metrics_file.clone(),
        }
    }
}

/// Ends in `.prom`, with something before it.
fn is_prom(file: &Path) -> bool {
    file.extension()
        .is_some_and(|extension| extension == "prom")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn parsed(flags: &[&str]) -> (MetricsConfig, Vec<String>) {
        let args = ["katamaran"].iter().chain(flags);
        let cli = cli::parse(args.map(std::ffi::OsString::from)).unwrap();
        let mut problems = Vec::new();
        let config = MetricsConfig::from_args(&cli.migrate, &mut problems);
        (config, problems)
    }

    #[test]
    fn metrics_go_to_an_address_and_to_a_file_that_the_collector_reads() {
        let (config, problems) = parsed(&[
            "--metrics-listen",
            "[::1]:9478",
            "--metrics-file",
            "/v/k.prom",
        ]);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(config.listen, Some("[::1]:9478".parse().unwrap()));
        assert_eq!(config.file, Some("/v/k.prom".into()));
        assert_eq!(parsed(&[]).0, MetricsConfig::default());
    }

    #[test]
    fn what_is_no_address_or_would_not_be_read_is_told_by_name() {
        for address in [
            "9478",
            ":9478",
            "localhost:9478",
            "127.0.0.1",
            "127.0.0.1:x",
        ] {
            let (_, problems) = parsed(&["--metrics-listen", address]);
            assert!(problems[0].contains(address), "{problems:?}");
        }
        for file in ["/v/k.txt", "/v/.prom", "/v/k.prom.tmp", "/v/prom"] {
            let (_, problems) = parsed(&["--metrics-file", file]);
            assert!(
                problems[0].contains(file) && problems[0].contains(".prom,"),
                "{problems:?}"
            );
        }
    }
}
