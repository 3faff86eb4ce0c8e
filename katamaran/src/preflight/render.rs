//! The result as a person reads it: columns, 80 wide.

use std::fmt::Write as _;

use super::check::{Area, Check, Status};
use super::found::{Found, Side};

const WIDTH: usize = 80;
/// Two spaces, the status, two spaces, the name, two spaces.
const INDENT: usize = 2 + 9 + 2 + 16 + 2;
const ARROW: &str = "-> ";

pub(super) fn render(found: &Found) -> String {
    let mut out = String::new();
    write(&mut out, found).expect("writing to a String can't fail");
    out
}

fn write(out: &mut String, found: &Found) -> std::fmt::Result {
    let sides: Vec<&str> = found.sides.iter().map(|side| side_name(*side)).collect();
    writeln!(
        out,
        "katamaran {} preflight, {}, Linux {}",
        found.katamaran,
        sides.join(" and "),
        found.kernel
    )?;
    let mut area = None;
    for check in &found.checks {
        if area != Some(check.area) {
            area = Some(check.area);
            writeln!(out, "\n{}", area_name(check.area))?;
        }
        write_check(out, check)?;
    }
    if found.node_only {
        writeln!(
            out,
            "\nThis was the node. For a VM, its wiring and its way, put the migration's flags\n\
             behind `katamaran preflight`: --mode, --qmp, --dest-ip, --vm-ip ..."
        )?;
    }
    let missing = found.count(Status::Missing);
    let rest: Vec<String> = [
        (Status::Missing, "missing"),
        (Status::Degraded, "degraded"),
        (Status::Unchecked, "unchecked"),
    ]
    .into_iter()
    .map(|(status, name)| (found.count(status), name))
    .filter(|(count, _)| *count > 0)
    .map(|(count, name)| format!("{count} {name}"))
    .collect();
    let verdict = if missing == 0 { "fit" } else { "not fit" };
    let rest = match rest.is_empty() {
        true => "nothing to do".to_owned(),
        false => rest.join(", "),
    };
    writeln!(out, "\n{verdict} to migrate: {rest}")
}

fn write_check(out: &mut String, check: &Check) -> std::fmt::Result {
    let status = match check.status {
        Status::Ok => "ok",
        Status::Degraded => "degraded",
        Status::Missing => "MISSING",
        Status::Unchecked => "unchecked",
    };
    let mut label = format!("  {status:<9}  {:<16}  ", check.name);
    for line in wrap(&check.found, WIDTH - INDENT) {
        writeln!(out, "{}", format!("{label}{line}").trim_end())?;
        label = " ".repeat(INDENT);
    }
    let mut label = format!("{}{ARROW}", " ".repeat(INDENT));
    for line in wrap(
        check.advice.as_deref().unwrap_or_default(),
        WIDTH - INDENT - ARROW.len(),
    ) {
        writeln!(out, "{label}{line}")?;
        label = " ".repeat(INDENT + ARROW.len());
    }
    Ok(())
}

/// Breaks a text between words; a word that is longer than a line stays whole, so that it can be copied.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Source => "as source",
        Side::Destination => "as destination",
    }
}

fn area_name(area: Area) -> &'static str {
    match area {
        Area::Kernel => "kernel",
        Area::Privileges => "privileges",
        Area::Qemu => "QEMU",
        Area::Wiring => "wiring",
        Area::Path => "path to the destination",
        Area::Port => "port",
        Area::Buffer => "buffer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_and_the_advice_stands_below_what_it_is_about() {
        let found = Found {
            schema: 1,
            katamaran: "0.1.0",
            kernel: "6.18".into(),
            sides: vec![Side::Source, Side::Destination],
            node_only: false,
            result: Status::Missing,
            checks: vec![
                Check::ok(Area::Kernel, "release", "6.18"),
                Check::missing(
                    Area::Port,
                    "listen",
                    "port 7482 is taken by another process of this node, which is called python",
                    "End that process, or give both nodes another port with --port and do so on each of them.",
                ),
            ],
        };
        let expected = "\
katamaran 0.1.0 preflight, as source and as destination, Linux 6.18

kernel
  ok         release           6.18

port
  MISSING    listen            port 7482 is taken by another process of this
                               node, which is called python
                               -> End that process, or give both nodes another
                                  port with --port and do so on each of them.

not fit to migrate: 1 missing
";
        assert_eq!(render(&found), expected);
        assert!(expected.lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn a_word_that_fits_no_line_stays_whole() {
        assert_eq!(
            wrap("see /a/very/long/path now", 8),
            ["see", "/a/very/long/path", "now"]
        );
    }
}
