//! Logs: to standard error, as text or JSON. Standard output is for results.

use std::io::{self, Write};

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::LogFormat;
use crate::stderr;

/// The level or filter is not one.
#[derive(Debug, thiserror::Error)]
#[error("invalid --log-level {level:?}")]
pub struct InvalidLevel {
    level: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Starts logging. Lines are written so that they do not tear the progress `bars`.
///
/// # Errors
/// `level` is neither a level nor a filter.
pub fn init(format: LogFormat, level: &str, bars: MultiProgress) -> Result<(), InvalidLevel> {
    let filter = EnvFilter::try_new(level).map_err(|source| InvalidLevel {
        level: level.to_owned(),
        source,
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .with_writer(BesideBars { bars });
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

#[derive(Debug)]
struct BesideBars {
    bars: MultiProgress,
}

struct Line<'a> {
    bars: &'a MultiProgress,
}

impl<'a> MakeWriter<'a> for BesideBars {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { bars: &self.bars }
    }
}

/// Never fails, and never waits.
impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.bars.suspend(|| stderr::write(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
