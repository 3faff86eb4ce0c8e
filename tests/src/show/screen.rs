//! Where the shows print to.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::{Context, Result};

/// Standard output, with a clock.
#[derive(Debug)]
pub struct Screen {
    started: Instant,
}

impl Default for Screen {
    fn default() -> Self {
        Self {
            started: Instant::now(),
        }
    }
}

impl Screen {
    /// Prints some text and a line break.
    ///
    /// # Errors
    ///
    /// When nobody reads any more.
    pub fn print(&self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").context("write to standard output")?;
        out.flush().context("write to standard output")
    }

    /// Prints what has just happened, and when.
    ///
    /// # Errors
    ///
    /// When nobody reads any more.
    pub fn step(&self, who: &str, what: &str) -> Result<()> {
        let at = self.started.elapsed().as_secs_f64();
        self.print(&format!("{at:6.1} s  {who:<11} {what}"))
    }

    /// Whether a person looks at it as it happens.
    #[must_use]
    pub fn is_live(&self) -> bool {
        std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
    }
}
