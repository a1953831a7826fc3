//! nginx: a master and workers that share listening sockets.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;

use crate::{both_ways, Way};
use crate::kit::net::{free_port, http_get};
use crate::kit::{eventually, need, ps, Stage};

const PAGE: &str = "the page of the test\n";
const WORKERS: usize = 3;

fn config(stage: &Stage, port: u16) -> String {
    let work = stage.work("");
    let work = work.display();
    format!(
        "daemon off; worker_processes {WORKERS}; pid {work}/nginx.pid; error_log stderr;
         events {{ worker_connections 256; }}
         http {{ access_log off; client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
         uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
         server {{ listen 127.0.0.1:{port}; root {work}; location /state {{ return 200 ok; }} }} }}"
    )
}

fn serves(port: u16) {
    for _ in 0..50 {
        assert_eq!(http_get(port, "/page").unwrap(), PAGE);
        assert_eq!(http_get(port, "/state").unwrap(), "ok");
    }
}

/// Asks for the page all the while; every answer has to be right.
fn under_load<T>(port: u16, body: impl FnOnce() -> T) -> T {
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(http_get(port, "/page").unwrap(), PAGE);
                    served.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        eventually("load", || (served.load(Ordering::SeqCst) > 50).then_some(()));
        let value = body();
        let from = served.load(Ordering::SeqCst);
        eventually("answers after the checkpoint", || (served.load(Ordering::SeqCst) > from + 50).then_some(()));
        stop.store(true, Ordering::SeqCst);
        value
    })
}

fn nginx_serves_and_reloads_after_a_restore(stage: &Stage, way: Way) {
    let port = free_port();
    stage.write("page", PAGE);
    let config = stage.write("nginx.conf", &config(stage, port));
    let mut live = stage.start(Command::new(need("nginx")).arg("-p").arg(stage.work("")).arg("-c").arg(config));
    eventually("nginx to serve", || http_get(port, "/page").ok());
    let report = under_load(port, || stage.checkpoint(live.pid(), &[]));
    assert_eq!(report.processes, WORKERS + 1);
    live.assert_alive();
    live.kill();
    assert!(http_get(port, "/page").is_err(), "nobody listens after the kill");
    let root = way.restore(stage, &report.frame, &[]);
    serves(port);
    assert_eq!(ps::children(root).len(), WORKERS);
    // A reload makes new workers and ends the old ones: the master's hold on them is whole.
    let old = ps::children(root);
    ps::signal(root, Signal::SIGHUP);
    eventually("new workers in place of the old", || {
        let now = ps::children(root);
        (now.len() == WORKERS && now.iter().all(|pid| !old.contains(pid))).then_some(())
    });
    serves(port);
    ps::signal(root, Signal::SIGTERM);
    eventually("nginx to shut down cleanly", || (!ps::alive(root)).then_some(()));
}

both_ways! { nginx_serves_and_reloads_after_a_restore }
