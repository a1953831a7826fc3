//! Clients of the servers under test, over loopback.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use super::{eventually, BOUND};

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(BOUND))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One GET; the body of a 200.
pub fn http_get(port: u16, path: &str) -> io::Result<String> {
    let mut stream = connect(port)?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("not a 200: {text:?}"))),
    }
}

/// A client of redis.
pub struct Redis(BufReader<TcpStream>);

impl Redis {
    pub fn connect(port: u16) -> io::Result<Redis> {
        connect(port).map(|stream| Redis(BufReader::new(stream)))
    }

    /// Waits until the server answers.
    pub fn await_server(port: u16) -> Redis {
        eventually("redis to answer", || {
            let mut client = Redis::connect(port).ok()?;
            client.ask("PING").is_ok_and(|pong| pong == "PONG").then_some(client)
        })
    }

    /// Sends one command; gives its answer without the type letter.
    pub fn ask(&mut self, command: &str) -> io::Result<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let line = self.line()?;
        match line.split_at_checked(1) {
            Some(("+" | ":", value)) => Ok(value.to_owned()),
            Some(("$", "-1")) => Ok(String::new()),
            Some(("$", length)) => self.bulk(length.parse().map_err(io::Error::other)?),
            _ => Err(io::Error::other(format!("{command}: {line:?}"))),
        }
    }

    pub fn number(&mut self, command: &str) -> io::Result<u64> {
        self.ask(command)?.parse().map_err(io::Error::other)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    fn bulk(&mut self, length: usize) -> io::Result<String> {
        let mut bytes = vec![0; length + 2];
        self.0.read_exact(&mut bytes)?;
        bytes.truncate(length);
        String::from_utf8(bytes).map_err(io::Error::other)
    }
}
