//! The servers that incidents are about: nginx and php-fpm as Debian has them, with every local port towards
//! PHP taken. The diagnosis names the destination and the process, and the CPU flame graph shows the search.
//!
//! `cargo xtask test web` has both programs in a virtual machine; elsewhere they must be installed.

use std::{
    env, fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use netprobe_tests::{
    netns::Cable,
    probe::Probe,
    skip::{is_root, skip},
    traffic::{Family, abort},
    wait_until,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, setrlimit};
use serde_json::json;
use socket2::Socket;

use crate::verdict::Verdict;

/// A directory for chroot(8) that has the servers; without it they are where Debian installs them.
const ROOT: &str = "NETPROBE_WEB";
/// As in the settings below.
const HTTP: u16 = 8080;
const FASTCGI: u16 = 9000;
/// All local ports that there are.
const PORTS: &str = "40000 41999";
/// Requests that PHP does not answer: each has one of the ports, as long as there are any.
const HELD: usize = 2000;
const FILES: u64 = 16384;

const NGINX: &str = "\
daemon off; user root; worker_processes 1; pid /tmp/nginx.pid; error_log /tmp/nginx.log crit;
events { worker_connections 8192; }
http {
    access_log off;
    client_body_temp_path /tmp/body; fastcgi_temp_path /tmp/fastcgi; proxy_temp_path /tmp/proxy;
    uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
    server {
        listen 8080 backlog=4096;
        location / {
            fastcgi_pass 127.0.0.1:9000;
            fastcgi_read_timeout 600;
            fastcgi_param SCRIPT_FILENAME /tmp/page.php;
            fastcgi_param REQUEST_METHOD $request_method;
        }
    }
}
";
const PHP: &str = "\
[global]
daemonize = no
error_log = /tmp/php.log
[www]
user = root
group = root
listen = 127.0.0.1:9000
listen.backlog = 4096
pm = static
pm.max_children = 2
";
const PAGE: &str = "<?php sleep(600); ?>";

/// Where the servers are.
struct Site {
    root: PathBuf,
    /// The program, which has a version in its name.
    php: String,
}

impl Site {
    /// `None` where they are not installed, and that is printed.
    fn find() -> Option<Self> {
        let root = env::var_os(ROOT).map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let programs = fs::read_dir(root.join("usr/sbin")).into_iter().flatten();
        let php = programs
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| name.starts_with("php-fpm"));
        let Some(php) = php.filter(|_| root.join("usr/sbin/nginx").exists()) else {
            skip("nginx and php-fpm are not installed; `cargo xtask test web` has both");
            return None;
        };
        let site = Self { root, php };
        if env::var_os(ROOT).is_some() {
            site.furnish();
        }
        for (name, text) in [("nginx.conf", NGINX), ("php.conf", PHP), ("page.php", PAGE)] {
            site.write("tmp", name, text);
        }
        Some(site)
    }

    /// What their packages would have made when they were installed.
    fn furnish(&self) {
        self.write("etc", "passwd", "root:x:0:0:root:/tmp:/bin/sh\n");
        self.write("etc", "group", "root:x:0:\n");
        let devices = self.root.join("dev");
        fs::create_dir_all(&devices).expect("make a folder");
        let mounted = Command::new("mount")
            .args(["-o", "bind", "/dev"])
            .arg(devices)
            .status();
        assert!(mounted.expect("run mount").success());
    }

    fn write(&self, folder: &str, name: &str, text: &str) {
        let folder = self.root.join(folder);
        fs::create_dir_all(&folder).expect("make a folder");
        fs::write(folder.join(name), text).expect("write a file of the servers");
    }

    /// Starts one of them, in the namespace of this thread.
    fn start(&self, program: &str, arguments: &[&str]) -> Server {
        use std::os::unix::process::CommandExt;

        let mut command = Command::new("chroot");
        command
            .arg(&self.root)
            .arg(format!("/usr/sbin/{program}"))
            .args(arguments)
            .stdin(Stdio::null())
            .process_group(0);
        Server(command.spawn().expect("start a server"))
    }
}

/// A server with its children, which end with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        kill_process_group(Pid::from_child(&self.0), Signal::KILL).ok();
        self.0.wait().ok();
    }
}

/// Asks for the page.
fn request() -> Socket {
    let mut socket = Family::V4.connect(HTTP).expect("connect to nginx");
    socket
        .write_all(b"GET / HTTP/1.0\r\n\r\n")
        .expect("ask nginx");
    socket
}

/// What nginx answers, if it does soon.
fn answer() -> String {
    let mut socket = request();
    let timeout = socket.set_read_timeout(Some(Duration::from_millis(500)));
    timeout.expect("set a timeout");
    let mut bytes = Vec::new();
    // Without an answer there is a timeout.
    socket.read_to_end(&mut bytes).ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// In how much of the samples of nginx both functions are, and in how much its stack is cut short, in percent.
#[expect(clippy::cast_precision_loss, reason = "samples are few")]
fn shares(folded: &str, functions: &[&str]) -> (f64, f64) {
    let (mut all, mut with, mut cut) = (0, 0, 0);
    let stacks = folded.lines().filter_map(|line| line.rsplit_once(' '));
    for (stack, count) in stacks.filter(|(stack, _)| stack.starts_with("nginx;")) {
        let count: u64 = count.parse().expect("a number of samples");
        all += count;
        // A call that is the last of a function leaves no frame of it: `inet_hash_connect` is `__inet_hash_connect` then.
        let mut names = stack.split(';').map(|frame| frame.trim_start_matches('_'));
        let mut has = |function: &&str| names.any(|name| name.starts_with(*function));
        if functions.iter().all(&mut has) {
            with += count;
        }
        if stack.contains("[truncated]") {
            cut += count;
        }
    }
    assert!(all > 0, "nginx was never seen: {folded}");
    let percent = |part: u64| 100.0 * part as f64 / all as f64;
    (percent(with), percent(cut))
}

/// Allows this process and its children so many files.
fn allow_files() {
    let limit = Rlimit {
        current: Some(FILES),
        maximum: Some(FILES),
    };
    setrlimit(Resource::Nofile, limit).expect("raise the limit of open files");
}

/// What is said while nginx, which has no port left, is asked again and again.
fn verdict_under_load(cable: &Cable) -> Verdict {
    thread::scope(|scope| {
        let hearing = scope.spawn(|| Verdict::next(&[cable.server.inum().into()]));
        cable.client.run(|| {
            while !hearing.is_finished() {
                let answer = answer();
                assert!(answer.contains("502"), "{answer:?}");
            }
        });
        hearing.join().expect("a verdict")
    })
}

#[test]
fn nginx_without_ports_towards_php_is_named_and_drawn() {
    if !is_root() {
        return;
    }
    let Some(site) = Site::find() else {
        return;
    };
    allow_files();
    let cable = Cable::new();
    cable.server.sysctl("net.ipv4.ip_local_port_range", PORTS);
    let _servers = cable.server.run(|| {
        [
            site.start(&site.php, &["-R", "-y", "/tmp/php.conf"]),
            site.start("nginx", &["-c", "/tmp/nginx.conf"]),
        ]
    });
    for (name, port) in [("php-fpm", FASTCGI), ("nginx", HTTP)] {
        let address = (Ipv4Addr::LOCALHOST, port);
        // A port in TIME_WAIT would be free again a second later.
        let listens = || {
            let connected = cable.server.run(|| TcpStream::connect(address));
            connected.map(|stream| abort(stream.into())).is_ok()
        };
        wait_until(&format!("{name} listens"), listens);
    }
    let held: Vec<Socket> = cable.client.run(|| (0..HELD).map(|_| request()).collect());
    let refuses = || cable.client.run(answer).contains("502");
    wait_until("no port is left", refuses);

    // Whoever watches has begun to, before the machine is busy.
    Verdict::of_all();

    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("nginx.folded");
    let path = file.display().to_string();
    let graph = Probe::start(&["flame", "cpu", "--folded", "-o", &path]);
    let verdict = verdict_under_load(&cable);
    graph.stop_without_summary();
    drop(held);

    let php = [("address", json!("127.0.0.1")), ("port", json!(FASTCGI))];
    verdict
        .first("ephemeral-ports-exhausted")
        .hits("destination", &php)
        .hits("process", &[("comm", json!("nginx"))]);

    let stacks = fs::read_to_string(file).expect("read the stacks");
    let search = ["inet_hash_connect", "inet_check_established"];
    let (searching, cut) = shares(&stacks, &search);
    assert!(searching > 10.0, "{searching} % is the search: {stacks}");
    assert!(cut < 5.0, "{cut} % of the stacks are cut: {stacks}");
}
