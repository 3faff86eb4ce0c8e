//! What a katamaran logs, as short lines for people.

/// Shows each line of a growing log once.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// Bytes of the log that have been looked at.
    seen: usize,
}

impl Follower {
    /// The lines that were completed since the last call, shortened, and when each was written, in
    /// microseconds of its day (UTC).
    pub(super) fn news(&mut self, log: &str) -> Vec<(u64, String)> {
        let fresh = log.get(self.seen..).unwrap_or_default();
        let Some(end) = fresh.rfind('\n') else {
            return Vec::new();
        };
        self.seen += end + 1;
        let line = |line| Some((time_of_day_us(line)?, shorten(line)?));
        fresh[..end].lines().filter_map(line).collect()
    }
}

/// `2026-11-22T03:16:39.813094Z …`
fn time_of_day_us(line: &str) -> Option<u64> {
    let (_date, rest) = line.split_once('T')?;
    let (time, _text) = rest.split_once('Z')?;
    let mut parts = time.splitn(3, ':');
    let (hours, minutes) = (parts.next()?, parts.next()?);
    let (seconds, fraction) = parts.next()?.split_once('.')?;
    let minutes = hours.parse::<u64>().ok()? * 60 + minutes.parse::<u64>().ok()?;
    let seconds = minutes * 60 + seconds.parse::<u64>().ok()?;
    Some(seconds * 1_000_000 + fraction.parse::<u64>().ok()?)
}

/// `…Z  INFO done phase="arm" ms=7.1` becomes `arm: 7.1 ms`; other fields than these are left out.
fn shorten(line: &str) -> Option<String> {
    let (_stamp, rest) = line.split_once('Z')?;
    let (level, text) = rest.trim_start().split_once(' ')?;
    let mut words: Vec<&str> = Vec::new();
    let mut fields: Vec<(&str, &str)> = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (word, after) = match rest.split_once("=\"") {
            // A quoted value may hold spaces.
            Some((name, value)) if !name.contains(' ') => {
                let (value, after) = value.split_once('"').unwrap_or((value, ""));
                fields.push((name, value));
                rest = after.trim_start();
                continue;
            }
            _ => rest.split_once(' ').unwrap_or((rest, "")),
        };
        match word.split_once('=') {
            Some(field) => fields.push(field),
            None => words.push(word),
        }
        rest = after.trim_start();
    }
    let field = |name: &str| {
        fields
            .iter()
            .find(|field| field.0 == name)
            .map(|field| field.1)
    };
    let message = words.join(" ");
    let text = match (
        message.as_str(),
        field("phase"),
        field("ms"),
        field("percent"),
    ) {
        ("done", Some(phase), Some(ms), _) => format!("{phase}: {ms} ms"),
        (ram, _, _, Some(percent)) if ram.starts_with("RAM: ") => {
            let pace: Vec<&str> = ram["RAM: ".len()..].split(", ").take(2).collect();
            format!("RAM {percent} %, {}", pace.join(", "))
        }
        (message, ..) => match field("error") {
            Some(error) => format!("{message}: {error}"),
            None => message.to_owned(),
        },
    };
    Some(match level {
        "INFO" => text,
        level => format!("{level} {text}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_that_is_done_is_its_name_and_its_time() {
        let line = r#"2026-11-22T03:16:39.813094Z  INFO done phase="copy RAM" ms=408.7"#;
        assert_eq!(shorten(line).as_deref(), Some("copy RAM: 408.7 ms"));
    }

    #[test]
    fn the_ram_copy_is_a_percentage_and_a_pace() {
        let line = "2026-11-22T03:16:39.661232Z  INFO RAM: pass 1, 324 MiB/s, guest dirties 0.0 MiB/s, \
                    pause now 115 ms (limit 50 ms) percent=74 remaining_mib=32 eta_s=0";
        assert_eq!(
            shorten(line).as_deref(),
            Some("RAM 74 %, pass 1, 324 MiB/s")
        );
    }

    #[test]
    fn fields_of_other_lines_are_left_out_but_errors_are_not() {
        let line = "2026-11-22T03:16:38.673035Z  INFO both nodes are ready tap=tap0 tunnel=Ip";
        assert_eq!(shorten(line).as_deref(), Some("both nodes are ready"));
        let line = r#"2026-11-22T03:16:38.673035Z ERROR the migration failed error="no way""#;
        assert_eq!(
            shorten(line).as_deref(),
            Some("ERROR the migration failed: no way")
        );
    }

    #[test]
    fn a_line_is_shown_once_and_only_when_it_is_complete() {
        let mut follower = Follower::default();
        let log = "2026-11-22T00:01:02.000003Z  INFO one\n2026-11-22T03:16:38.000000Z  INFO tw";
        assert_eq!(follower.news(log), [(62_000_003, "one".to_owned())]);
        assert_eq!(follower.news(&format!("{log}o\n"))[0].1, "two");
        assert!(follower.news(&format!("{log}o\n")).is_empty());
    }
}
