//! Answers that are lost on the way.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use crate::process::Coordinator;

/// The type of the HTTP/2 frame that begins an answer.
const HEADERS: u8 = 1;

/// A way to `server` on which the first answers are lost: their connections break before anything of them is
/// passed on.
fn way_that_loses(answers: usize, server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (n, client) in listener.incoming().enumerate() {
            let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || io::copy(&mut from, &mut to));
            std::thread::spawn(move || {
                // However it ends, both ends hear of it.
                let _ = pass_frames(&server, &client, n < answers);
                let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
            });
        }
    });
    address
}

/// Passes HTTP/2 frames on; `loses`: until an answer begins.
fn pass_frames(mut from: &TcpStream, mut to: &TcpStream, loses: bool) -> io::Result<()> {
    loop {
        let mut head = [0; 9];
        from.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        from.read_exact(&mut payload)?;
        if loses && head[3] == HEADERS {
            return Ok(());
        }
        to.write_all(&head)?;
        to.write_all(&payload)?;
    }
}

#[test]
fn a_render_whose_answer_is_lost_is_accepted_once() {
    let coordinator = Coordinator::start(&[]);
    let server = coordinator.url.strip_prefix("http://").unwrap().parse().unwrap();
    let submit = |losses: usize, more: &[&str]| {
        let way = format!("http://{}", way_that_loses(losses, server));
        let settings = ["submit", "-p", "a fox", "--model", "synthetic:side=16", "--coordinator", &way];
        coordinator.ask(&[&settings[..], more].concat())
    };
    for (name, more) in [("r1", &[][..]), ("fox", &["--name", "fox"])] {
        let output = submit(2, more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("submitting again"), "{said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), name);
    }
    assert_eq!(coordinator.json(&["status"]).as_array().unwrap().len(), 2);
    // It does not try for ever; and what was accepted meanwhile is there.
    assert!(!submit(100, &["--name", "lost"]).status.success());
    assert_eq!(coordinator.json(&["status"]).as_array().unwrap().len(), 3);
    // The name is taken for everybody else.
    let said = String::from_utf8_lossy(&submit(0, &["--name", "fox"]).stderr).into_owned();
    assert!(said.contains("`fox` already"), "{said}");
}
