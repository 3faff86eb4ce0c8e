//! The command, running; and what it says.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use katamaran_tests::lab::Process;
use katamaran_tests::run::katamaran_binary;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::stage::{BEHIND_TAP, NOBODY, PORT, Space, Stage, VM, VM6};

/// For an emulated kernel, too.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nobody listens there: such a packet is dropped, and marks a place among the others.
const MARK_PORT: u16 = 9;

/// `katamaran trace --json`, for the VM of one stage.
pub(crate) struct Tracer {
    process: Process,
    records: Receiver<Value>,
    spaces: [String; 3],
    vm_mark: Box<dyn Fn()>,
}

/// What has to be said of a drop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    /// Any of them: kernels differ.
    pub(crate) reasons: &'a [&'a str],
    pub(crate) hop: &'a str,
    /// Any of them, as the start of the function's name.
    pub(crate) symbols: &'a [&'a str],
    pub(crate) device: &'a str,
    pub(crate) space: &'a Space,
}

impl Tracer {
    /// Starts it and waits until it watches.
    #[track_caller]
    pub(crate) fn start(stage: &Stage) -> Self {
        Self::start_with(stage, &[])
    }

    #[track_caller]
    pub(crate) fn start_with(stage: &Stage, flags: &[&str]) -> Self {
        let mut command = Command::new(katamaran_binary().unwrap());
        let vm_ips = [VM, BEHIND_TAP, NOBODY, VM6].join(",");
        command
            .args(["trace", "--json", "--vm-ip", &vm_ips])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::spawn("trace", command, None).unwrap();
        let stdout = process.child_mut().stdout.take().unwrap();
        let (sender, records) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let record = serde_json::from_str(&line.unwrap()).unwrap();
                if sender.send(record).is_err() {
                    return;
                }
            }
        });
        let mark = stage.vm.socket("0.0.0.0:0");
        let tracer = Self {
            process,
            records,
            spaces: stage.spaces(),
            vm_mark: Box::new(move || {
                // Refused, as it should be: the socket reports it with the next one.
                if mark.send_to(&[0; 8], (VM, MARK_PORT)).is_err() {
                    mark.send_to(&[0; 8], (VM, MARK_PORT)).unwrap();
                }
            }),
        };
        let first = tracer.next(Instant::now() + PATIENCE).unwrap();
        assert_eq!(first["event"], "start");
        tracer
    }

    /// The next record of our namespaces, or of none.
    fn next(&self, deadline: Instant) -> Option<Value> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.records.recv_timeout(left) {
                Ok(record) if self.is_ours(&record) => return Some(record),
                // Other tests run at the same time.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn is_ours(&self, record: &Value) -> bool {
        match record["netns"].as_str() {
            Some(netns) => self.spaces.iter().any(|ours| ours == netns),
            None => true,
        }
    }

    /// Lets a packet be dropped that is known, and returns all drops before it.
    #[track_caller]
    pub(crate) fn until_mark(&self) -> Vec<Value> {
        (self.vm_mark)();
        let deadline = Instant::now() + PATIENCE;
        let mut before = Vec::new();
        loop {
            match self.next(deadline) {
                Some(record) if record["destination_port"] == MARK_PORT => return before,
                Some(record) if record["event"] == "drop" => before.push(record),
                Some(_) => {}
                None => panic!("the mark was not told; before it {before:#?}"),
            }
        }
    }

    /// Fails if a drop was told.
    #[track_caller]
    pub(crate) fn expect_silence(&self, when: &str) {
        let told = self.until_mark();
        assert!(told.is_empty(), "{when}: {told:#?}");
    }

    /// Fails unless at least so many packets were told, all of them as expected.
    #[track_caller]
    pub(crate) fn expect(&self, packets: usize, expected: &Expected<'_>) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        let mut told = Vec::new();
        while told.len() < packets {
            match self.next(deadline) {
                Some(record) if record["event"] == "drop" => told.push(record),
                Some(_) => {}
                None => panic!("{packets} of {expected:#?}, but told were {told:#?}"),
            }
        }
        for record in &told {
            expected.check(record);
        }
        told
    }

    /// The next record of a kind.
    #[track_caller]
    pub(crate) fn next_of(&self, event: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.next(deadline) {
                Some(record) if record["event"] == event => return record,
                Some(_) => {}
                None => panic!("no {event} was told"),
            }
        }
    }

    /// Waits for the command to end by itself, and returns what it says last.
    #[track_caller]
    pub(crate) fn summary(mut self) -> Value {
        let summary = self.next_of("summary");
        let status = self.process.wait_until(Instant::now() + PATIENCE).unwrap();
        assert_eq!(status.code(), Some(0));
        summary
    }

    /// Keeps it from running.
    pub(crate) fn stop(&mut self) {
        self.process.signal(Signal::SIGSTOP).unwrap();
    }

    pub(crate) fn go_on(&mut self) {
        self.process.signal(Signal::SIGCONT).unwrap();
    }

    /// Ends it as Ctrl-C does.
    #[track_caller]
    pub(crate) fn interrupt(mut self) -> Value {
        self.process.signal(Signal::SIGINT).unwrap();
        self.summary()
    }
}

impl Expected<'_> {
    #[track_caller]
    fn check(&self, record: &Value) {
        let text = |field: &str| record[field].as_str().unwrap_or("nothing").to_owned();
        let one_of = |wanted: &[&str], told: &str| wanted.contains(&told);
        let starts = self
            .symbols
            .iter()
            .any(|symbol| text("symbol").starts_with(symbol));
        assert!(
            one_of(self.reasons, &text("reason"))
                && text("hop") == self.hop
                && starts
                && text("device") == self.device
                && text("netns") == self.space.name(),
            "{self:#?}, but told was {record:#?}"
        );
    }
}

/// Without its cause nothing is dropped; with it, `packets` of those that are sent, and all as expected.
#[track_caller]
pub(crate) fn kind(
    stage: &Stage,
    tracer: &Tracer,
    expected: &Expected<'_>,
    packets: usize,
    cause: impl FnOnce(),
    send: impl Fn(),
) -> Value {
    send();
    stage.receive(packets);
    tracer.expect_silence("before the cause");
    cause();
    send();
    let told = tracer.expect(packets, expected);
    let record = told[0].clone();
    assert_eq!(record["destination_port"], PORT, "{record:#?}");
    record
}
