//! The bars' way to standard error: past whoever draws them, so that a terminal that is stopped or closed holds up nobody.

use std::io;
use std::sync::{Mutex, PoisonError};

use console::Term;
use indicatif::TermLike;

use crate::stderr;

/// Standard error. Nothing that is drawn on it fails: the bars' library panics where that happens while a line is
/// written above them.
#[derive(Debug)]
pub(super) struct Terminal {
    /// Knows how large it is.
    term: Term,
    /// What is drawn until it is flushed.
    drawn: Mutex<String>,
}

impl Terminal {
    pub(super) fn stderr() -> Self {
        Self {
            term: Term::stderr(),
            drawn: Mutex::default(),
        }
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "the trait's methods may fail, and these do not"
    )]
    fn draw(&self, text: &str) -> io::Result<()> {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        drawn.push_str(text);
        Ok(())
    }

    fn move_cursor(&self, n: usize, direction: char) -> io::Result<()> {
        match n {
            0 => Ok(()),
            n => self.draw(&format!("\x1b[{n}{direction}")),
        }
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        self.term.size().1
    }

    fn height(&self) -> u16 {
        self.term.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'D')
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.draw(line)?;
        self.draw("\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.draw("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        stderr::write(drawn.as_bytes());
        drawn.clear();
        Ok(())
    }
}
