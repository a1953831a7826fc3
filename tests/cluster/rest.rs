//! Requests to agents.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// "GET /PATH" to any address; all of the answer.
pub fn get(method_path: &str, address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "{method_path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// One request to the agent of a node, from 1; its answer as JSON.
pub fn rest(method_path: &str, node: usize, body: &str) -> serde_json::Value {
    let mut stream = TcpStream::connect((format!("10.77.0.{node}"), 7480)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "{method_path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap()
}
