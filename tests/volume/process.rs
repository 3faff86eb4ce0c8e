//! What other processes have open and locked.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use katamaran::volume::{Side, Volume, VolumeError};

const SESSION: u64 = 0x1122_3344_5566_7788;
/// The image that this program is to hold a mark on, when a test has started it for that.
const HOLD: &str = "KATAMARAN_TEST_HOLD";
const DEADLINE: Duration = Duration::from_secs(20);

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

/// Another process with the image open: `>>` for appending, `<` for reading.
fn opener(image: &Path, redirection: &str) -> Child {
    let script = format!(
        "exec 3{redirection}'{}'; echo open; read _",
        image.display()
    );
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_line(&mut child, "open");
    child
}

fn wait_for_line(child: &mut Child, expected: &str) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().contains(expected)),
        "no {expected:?}"
    );
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_process_that_could_write_is_named_and_one_that_reads_or_is_known_is_not() {
    let image = tempfile::NamedTempFile::new().unwrap();
    let volume = Volume::open(own_pid(), image.path()).unwrap();
    let reader = opener(image.path(), "<");
    assert_eq!(volume.other_writers(&[]).unwrap(), Vec::<String>::new());
    let writer = opener(image.path(), ">>");
    let writers = volume.other_writers(&[]).unwrap();
    let name = format!("process {}, sh", writer.id());
    assert_eq!(writers, [name]);
    let known = i32::try_from(writer.id()).unwrap();
    assert_eq!(
        volume.other_writers(&[known]).unwrap(),
        Vec::<String>::new()
    );
    end(reader);
    end(writer);
}

#[test]
fn a_mark_dies_with_its_process_and_is_named_by_it_before() {
    let image = tempfile::NamedTempFile::new().unwrap();
    let volume = Volume::open(own_pid(), image.path()).unwrap();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process::holds_a_mark", "--nocapture"])
        .env(HOLD, image.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_line(&mut holder, "held");
    assert!(volume.is_marked(Side::Source, SESSION).unwrap());
    let error = volume.mark(Side::Source, SESSION + 1).unwrap_err();
    assert!(
        matches!(&error, VolumeError::Migrating { holder: Some(who), .. }
            if who.contains(&format!("process {}", holder.id()))),
        "{error}"
    );
    end(holder);
    let deadline = Instant::now() + DEADLINE;
    while volume.is_marked(Side::Source, SESSION).unwrap() {
        assert!(Instant::now() < deadline, "the mark outlived its process");
        std::thread::yield_now();
    }
    volume.mark(Side::Source, SESSION + 1).unwrap();
}

/// Not a test of its own: the process that the one above kills.
#[test]
fn holds_a_mark() {
    let Some(path) = std::env::var_os(HOLD) else {
        return;
    };
    let _open = File::open(&path).unwrap();
    let volume = Volume::open(own_pid(), Path::new(&path)).unwrap();
    volume.mark(Side::Source, SESSION).unwrap();
    println!("held");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
