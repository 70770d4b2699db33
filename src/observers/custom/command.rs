//! Runs a command on the values of one tensor.
//!
//! Its three streams are served from one loop, so that it may read and write in any order, or not at all.

use super::children::Group;
use super::{CustomObserver, Question, feed, reply};
use crate::error::escape;
use crate::quant::params::Range;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Most bytes that a command may print.
const MOST_OUTPUT: usize = 64 << 20;

/// Bytes that are kept of the end of standard error.
const KEPT_STDERR: usize = 4 << 10;

/// Lines of standard error that a message shows, and characters of each.
const SHOWN_LINES: usize = 3;
const SHOWN_CHARS: usize = 200;

/// Longest time between two looks at whether the command has ended, while nothing else happens.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// The shortest.
const SHORTEST_PAUSE: Duration = Duration::from_micros(200);

/// An observer outside of qtool, and what it has answered so far.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) observer: CustomObserver,
    directory: PathBuf,
    /// By the hash of a question and its values: a run may look at a tensor more than once.
    answers: Mutex<HashMap<blake3::Hash, Vec<Range>>>,
}

/// Values that are handed out piece by piece, as often as they are asked for.
pub(crate) trait ValueStream {
    /// Begins again.
    fn rewind(&mut self);

    /// Appends the next piece; nothing at the end.
    fn next(&mut self, values: &mut Vec<f32>);
}

impl Command {
    pub(super) fn new(observer: CustomObserver, directory: &Path) -> Self {
        Command { observer, directory: directory.to_owned(), answers: Mutex::default() }
    }

    /// A range for each group of a tensor.
    ///
    /// # Errors
    ///
    /// What went wrong, in one line.
    pub(crate) fn ask(&self, question: &Question<'_>, values: &mut dyn ValueStream) -> Result<Vec<Range>, String> {
        const LOCK: &str = "no thread panics while it holds this lock";
        let key = key(question, values);
        if let Some(ranges) = self.answers.lock().expect(LOCK).get(&key) {
            return Ok(ranges.clone());
        }
        values.rewind();
        let found = |what: String| format!("observer {:?}: {what}", self.observer.name);
        let (output, stderr) = self.run(question, values).map_err(found)?;
        let ranges = reply::parse(&output, question.groups).map_err(|what| found(with_stderr(what, &stderr)))?;
        self.answers.lock().expect(LOCK).insert(key, ranges.clone());
        Ok(ranges)
    }

    /// What the command prints, and the end of its standard error.
    fn run(&self, question: &Question<'_>, values: &mut dyn ValueStream) -> Result<(Vec<u8>, Vec<u8>), String> {
        let program = &self.observer.command[0];
        let mut command = std::process::Command::new(program);
        if !self.directory.as_os_str().is_empty() {
            let directory = std::path::absolute(&self.directory).unwrap_or_else(|_| self.directory.clone());
            if program.contains('/') {
                command = std::process::Command::new(directory.join(program));
            }
            command.current_dir(directory);
        }
        command.args(&self.observer.command[1..]).envs(question.environment());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group =
            Group::start(&mut command).map_err(|e| format!("command {}: expected a program that can be run, found: {e}", show(program)))?;
        let mut streams = Streams::of(&mut group).map_err(|e| format!("command {}: pipes: {e}", show(program)))?;
        streams.pending = feed::header(self.observer.input, question.shape);
        let timeout = Duration::from_secs_f64(self.observer.timeout);
        let done = streams.serve(&group, Instant::now() + timeout, values);
        let status = group.end().map_err(|e| format!("command {}: {e}", show(program)))?;
        let what = match done {
            Ok(()) if status.success() => return Ok((streams.output, streams.errors)),
            Ok(()) => describe(status),
            Err(Stopped::Timeout) => format!("expected an answer within {} s, found none", self.observer.timeout),
            Err(Stopped::Output) => format!("standard output: expected at most {MOST_OUTPUT} bytes, found more"),
            Err(Stopped::Failed(e)) => format!("pipes: {e}"),
        };
        Err(with_stderr(format!("command {}: {what}", show(program)), &streams.errors))
    }
}

/// What tells a question from others.
fn key(question: &Question<'_>, values: &mut dyn ValueStream) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let environment = question.environment();
    hasher.update(format!("{environment:?} {:?}", question.shape).as_bytes());
    let mut bytes = Vec::new();
    while append(values, &mut bytes) {
        hasher.update(&bytes);
        bytes.clear();
    }
    hasher.finalize()
}

/// Appends the bytes of the next values; whether there were any.
fn append(values: &mut dyn ValueStream, bytes: &mut Vec<u8>) -> bool {
    let mut piece = Vec::new();
    values.next(&mut piece);
    bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
    !piece.is_empty()
}

fn show(program: &str) -> String {
    shorten_line(program)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("expected exit status 0, found {code}"),
        (None, Some(signal)) => format!("expected exit status 0, found death by signal {signal}"),
        (None, None) => format!("expected exit status 0, found {status}"),
    }
}

/// `what` with the last lines of standard error.
fn with_stderr(what: String, stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown: Vec<String> = lines[lines.len().saturating_sub(SHOWN_LINES)..].iter().map(|line| shorten_line(line.trim_end())).collect();
    if shown.is_empty() { what } else { format!("{what}; standard error ends: {}", shown.join(" | ")) }
}

fn shorten_line(line: &str) -> String {
    let mut shown = escape(line);
    if let Some((end, _)) = shown.char_indices().nth(SHOWN_CHARS) {
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

/// Why a command was not waited for.
enum Stopped {
    Timeout,
    Output,
    Failed(std::io::Error),
}

/// The ends of a command's pipes; closed ones are gone.
struct Streams {
    stdin: Option<std::process::ChildStdin>,
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
    /// What is to be written next, from `written` on.
    pending: Vec<u8>,
    written: usize,
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Streams {
    fn of(group: &mut Group) -> std::io::Result<Self> {
        let child = &mut group.child;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        for stream in [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)] {
            stream.map_or(Ok(()), |stream| ioctl_fionbio(stream, true))?;
        }
        Ok(Streams { stdin, stdout, stderr, pending: vec![], written: 0, output: vec![], errors: vec![] })
    }

    /// Writes `values` and reads what comes until the command has ended.
    fn serve(&mut self, group: &Group, deadline: Instant, values: &mut dyn ValueStream) -> Result<(), Stopped> {
        let mut pause = SHORTEST_PAUSE;
        loop {
            // What it wrote before it ended is in the pipes.
            let has_exited = group.has_exited();
            let left = deadline.saturating_duration_since(Instant::now());
            if !has_exited && left.is_zero() {
                return Err(Stopped::Timeout);
            }
            let happened = self.wait(if has_exited { Duration::ZERO } else { pause.min(left) })?;
            pause = if happened { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            if read(&mut self.stdout, &mut self.output, MOST_OUTPUT)? {
                return Err(Stopped::Output);
            }
            read(&mut self.stderr, &mut self.errors, usize::MAX)?;
            self.errors.drain(..self.errors.len().saturating_sub(KEPT_STDERR));
            if has_exited {
                return Ok(());
            }
            self.write(values)?;
        }
    }

    /// Waits until something can be read or written; whether that is so.
    fn wait(&self, timeout: Duration) -> Result<bool, Stopped> {
        let stdin = self.stdin.iter().map(|stream| PollFd::new(stream, PollFlags::OUT));
        let stdout = self.stdout.iter().map(|stream| PollFd::new(stream, PollFlags::IN));
        let stderr = self.stderr.iter().map(|stream| PollFd::new(stream, PollFlags::IN));
        let mut all: Vec<PollFd<'_>> = stdin.chain(stdout).chain(stderr).collect();
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.min(LONGEST_PAUSE).as_nanos() as _ };
        match poll(&mut all, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(true),
            Err(e) => Err(Stopped::Failed(e.into())),
        }
    }

    /// Writes as much as the pipe takes. A command need not read what it is given.
    fn write(&mut self, values: &mut dyn ValueStream) -> Result<(), Stopped> {
        for _ in 0..TURN {
            let Some(stdin) = &mut self.stdin else { break };
            if self.written == self.pending.len() {
                self.pending.clear();
                self.written = 0;
                if !append(values, &mut self.pending) {
                    self.stdin = None;
                    break;
                }
            }
            match stdin.write(&self.pending[self.written..]) {
                Ok(count) => self.written += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::BrokenPipe => self.stdin = None,
                Err(e) => return Err(Stopped::Failed(e)),
            }
        }
        Ok(())
    }
}

/// Bytes that are read at a time, as many as a pipe holds by default.
const PIECE: usize = 64 << 10;

/// Pieces that are read or written before it is somebody else's turn; the largest pipe holds as many.
const TURN: usize = 16;

/// Reads what is there; whether that makes more than `most` bytes in all.
fn read(stream: &mut Option<impl Read>, bytes: &mut Vec<u8>, most: usize) -> Result<bool, Stopped> {
    let mut piece = vec![0; PIECE];
    for _ in 0..TURN {
        let Some(open) = stream else { break };
        match open.read(&mut piece) {
            Ok(0) => *stream = None,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(Stopped::Failed(e)),
        }
    }
    Ok(bytes.len() > most)
}
