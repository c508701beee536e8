//! Runs the built binary as a process, reads its output, sends signals, and kills it with the test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::scratch::Scratch;
use super::wait::{until, until_ok};

/// A child process that writes its output to files. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    _folder: Scratch,
}

/// The result of a process that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Starts `fanwise` with these arguments and variables.
///
/// No `FANWISE_*` variable of the test run reaches it: each of them would set a key of its
/// configuration. Tests count the calls of a target, so none is made at the start.
pub(crate) fn fanwise(arguments: &[&str], variables: &[(&str, &str)]) -> Process {
    let quiet = [("FANWISE_WORKER__IDENTIFY_TARGETS", "false")];
    Process::start(
        Path::new(env!("CARGO_BIN_EXE_fanwise")),
        arguments,
        &[&quiet[..], variables].concat(),
        b"",
    )
}

/// Runs `fanwise` until it ends, with `input` on stdin. Panics if it takes longer than `bound`.
pub(crate) async fn run_fanwise(
    arguments: &[&str],
    variables: &[(&str, &str)],
    input: &[u8],
    bound: Duration,
) -> Finished {
    let program = Path::new(env!("CARGO_BIN_EXE_fanwise"));
    Process::start(program, arguments, variables, input)
        .finish(bound)
        .await
}

impl Process {
    /// Starts any program. Its stdin is a file with `input`, so no task has to write to it.
    pub(crate) fn start(
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
        variables: &[(&str, &str)],
        input: &[u8],
    ) -> Process {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let folder = Scratch::new(&name);
        let [stdout, stderr] = ["stdout", "stderr"].map(|file| folder.path().join(file));
        let stdin = folder.path().join("stdin");
        File::create(&stdin)
            .and_then(|mut file| file.write_all(input))
            .expect("write the input");
        let mut command = Command::new(program);
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("FANWISE_") {
                command.env_remove(key);
            }
        }
        let child = command
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(File::open(&stdin).map(Stdio::from).expect("open the input"))
            .stdout(
                File::create(&stdout)
                    .map(Stdio::from)
                    .expect("create the output file"),
            )
            .stderr(
                File::create(&stderr)
                    .map(Stdio::from)
                    .expect("create the error file"),
            )
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        Process {
            name,
            child,
            stdout,
            stderr,
            _folder: folder,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its output on stdout so far.
    pub(crate) fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// Its output on stderr so far.
    pub(crate) fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("ask for the state of a child")
            .is_none()
    }

    /// Sends SIGTERM, as a service manager does.
    pub(crate) fn terminate(&self) {
        send_signal("TERM", self.pid());
    }

    /// Sends the signal of a closing terminal.
    pub(crate) fn hang_up(&self) {
        send_signal("HUP", self.pid());
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&self) {
        send_signal("INT", self.pid());
    }

    /// Stops it (SIGSTOP) until [`Process::resume`].
    pub(crate) fn freeze(&self) {
        send_signal("STOP", self.pid());
    }

    pub(crate) fn resume(&self) {
        send_signal("CONT", self.pid());
    }

    /// SIGKILL. The process has ended when this returns.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        // An error means that it has ended by itself; waiting returns how.
        let _ = self.child.kill();
        self.child.wait().expect("wait for a killed child")
    }

    /// Waits until a line of stdout or stderr contains `text`, and returns the line. Panics if the
    /// process ends without it, and after `bound`.
    pub(crate) async fn until_prints(&mut self, text: &str, bound: Duration) -> String {
        let what = format!("{text:?} in the output of {}", self.name);
        let line = until_ok(&what, bound, async || {
            // Checked first: output written just before the end is read after it.
            let running = self.is_running();
            let output = self.stdout() + &self.stderr();
            match output.lines().find(|line| line.contains(text)) {
                Some(line) => Ok(Some(line.to_owned())),
                None if !running => Ok(None),
                None => Err(output),
            }
        });
        match line.await {
            Some(line) => line,
            None => panic!("{} ended without {text:?}; {}", self.name, self.output()),
        }
    }

    /// The port of the address in the line that contains `text`, of a process that listens on port 0.
    pub(crate) async fn until_listens(&mut self, text: &str) -> u16 {
        let line = self.until_prints(text, Duration::from_secs(60)).await;
        let (_, address) = line.rsplit_once("127.0.0.1:").expect("an address");
        let digits = address.split(|it: char| !it.is_ascii_digit()).next();
        digits.and_then(|it| it.parse().ok()).expect("a port")
    }

    /// Waits until it ends by itself. Panics after `bound`, with its output.
    pub(crate) async fn wait(&mut self, bound: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        until_ok(&what, bound, async || {
            let status = self.child.try_wait().expect("ask for the state of a child");
            status.ok_or_else(|| self.output())
        })
        .await
    }

    /// Waits until it ends by itself, and returns its result.
    pub(crate) async fn finish(mut self, bound: Duration) -> Finished {
        let code = self.wait(bound).await.code();
        Finished {
            code,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    fn output(&self) -> String {
        format!("stdout: {}\nstderr: {}", self.stdout(), self.stderr())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            self.kill();
        }
    }
}

/// Sends a signal by its name, with the `kill` command, since this crate forbids unsafe code.
pub(crate) fn send_signal(name: &str, pid: u32) {
    let status = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status();
    assert!(
        status.expect("run kill").success(),
        "cannot send SIG{name} to {pid}"
    );
}

/// The letter in `/proc/PID/stat`: whether the process runs, is stopped or sleeps. `None` if there
/// is no such process, or if it has ended and only waits to be reaped.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.chars().next().filter(|state| *state != 'Z')
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Process {
        Process::start(
            Path::new("/bin/sh"),
            &["-c", script],
            &[("GREETING", "hello")],
            b"one\ntwo\n",
        )
    }

    #[tokio::test]
    async fn collects_output_input_and_exit_code() {
        let finished = shell("echo $GREETING; cat; echo oops >&2; exit 7")
            .finish(BOUND)
            .await;
        assert_eq!(finished.code, Some(7));
        assert_eq!(finished.stdout, "hello\none\ntwo\n");
        assert_eq!(finished.stderr, "oops\n");
    }

    #[tokio::test]
    async fn the_binary_sees_no_variable_of_the_test_run() {
        let finished = shell("env | grep -c ^FANWISE_").finish(BOUND).await;
        assert_eq!(finished.stdout, "0\n");
    }

    #[tokio::test]
    async fn the_binary_runs() {
        let finished = run_fanwise(&["--version"], &[], b"", BOUND).await;
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        fanwise(&["--version"], &[]).wait(BOUND).await;
    }

    #[tokio::test]
    async fn signals_arrive() {
        let script = "trap 'echo int' INT; trap 'echo term; exit 3' TERM; echo ready; \
                      while :; do sleep 0.05; done";
        let mut process = shell(script);
        assert_eq!(process.until_prints("ready", BOUND).await, "ready");
        process.interrupt();
        process.until_prints("int", BOUND).await;
        process.freeze();
        let pid = process.pid();
        until("the stop", BOUND, async || {
            (process_state(pid) == Some('T')).then_some(())
        })
        .await;
        process.resume();
        process.terminate();
        assert_eq!(process.wait(BOUND).await.code(), Some(3));
    }

    #[tokio::test]
    async fn a_killed_or_dropped_process_is_gone() {
        let mut process = shell("sleep 600");
        assert!(process.is_running());
        assert_eq!(process.kill().code(), None);
        let pid = shell("exec sleep 600").pid();
        assert_eq!(process_state(pid), None);
    }

    #[tokio::test]
    #[should_panic(expected = "ended without \"ready\"")]
    async fn an_end_without_the_awaited_line_is_noticed() {
        shell("echo nothing").until_prints("ready", BOUND).await;
    }
}

/// A figure in KiB of `/proc/PID/status`.
pub(crate) fn resident_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
