//! Tests of the way out: what is sent, what is taken of the answer, and which addresses are not asked.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::{JoinHandle, spawn};

use super::*;

fn request(url: &Url) -> Request<'_> {
    Request { method: Method::POST, url, headers: &[], basic: None, form: &[], timeout: Duration::from_secs(10), max_body: 16 }
}

/// A server that answers one request with these bytes; gives its address and what it got.
fn server(answer: &'static [u8]) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut taken, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let read = stream.read(&mut buffer).unwrap();
            taken.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&taken).into_owned();
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
            let length = head.to_lowercase().split("content-length: ").nth(1).map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
            let is_tls = taken.first() == Some(&0x16);
            if read == 0 || is_tls || (!head.is_empty() && body.len() >= length) {
                stream.write_all(answer).unwrap();
                return text;
            }
        }
    });
    (address, serving)
}

fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

#[tokio::test]
async fn a_form_goes_out_whole_and_the_answer_comes_back_bounded() {
    let (address, serving) = server(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 20\r\n\r\n01234567890123456789");
    let url = url(&format!("http://al%40ice:p%C3%A9@{address}/a%20b?c=%C3%A9#nobody"));
    let headers = [(HeaderName::from_static("x-one"), HeaderValue::from_static("1"))];
    let form = [("Data", "{\"\u{e9}\":\"\u{260e} + &=\"}"), ("B", "")];
    let answer = Client::new(true).send(&Request { headers: &headers, form: &form, ..request(&url) }).await.unwrap();
    assert_eq!((answer.status, &answer.body[..], answer.is_whole), (StatusCode::FOUND, &b"0123456789012345"[..], false));
    assert_eq!(answer.headers.get("location").unwrap(), "http://127.0.0.1:1/", "told, and not followed");
    let got = serving.join().unwrap();
    let (head, body) = got.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /a%20b?c=%C3%A9 HTTP/1.1\r\n"), "{head}");
    let basic = STANDARD.encode("al@ice:p\u{e9}");
    for line in [
        format!("host: {address}"),
        "x-one: 1".into(),
        format!("authorization: Basic {basic}"),
        "content-type: application/x-www-form-urlencoded".into(),
    ] {
        assert!(head.lines().any(|told| told == line), "{line} in {head}");
    }
    let sent: Vec<(String, String)> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    assert_eq!(sent, form.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn a_given_login_goes_before_that_of_the_url() {
    let (address, serving) = server(b"HTTP/1.1 204 No Content\r\n\r\n");
    let url = url(&format!("http://a:b@{address}"));
    let answer = Client::new(true).send(&Request { method: Method::GET, basic: Some(("c", "d")), ..request(&url) }).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.len(), answer.is_whole), (204, 0, true));
    let got = serving.join().unwrap();
    assert!(got.starts_with("GET / HTTP/1.1\r\n") && got.contains(&STANDARD.encode("c:d")) && !got.contains("content-type"), "{got}");
}

#[tokio::test]
async fn what_only_this_machine_can_reach_is_not_asked_by_whatever_name() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = Client::new(false);
    for host in ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]"] {
        for scheme in ["http", "https"] {
            let url = url(&format!("{scheme}://{host}:{port}/"));
            let refused = client.send(&request(&url)).await.unwrap_err();
            assert!(matches!(refused, Error::Private) && !refused.is_retryable(), "{url}: {refused}");
        }
    }
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody was connected to");
}

#[tokio::test]
async fn what_cannot_be_answered_says_why() {
    let client = Client::new(true);
    for wrong in ["ftp://127.0.0.1/", "data:text/plain,x"] {
        assert!(matches!(client.send(&request(&url(wrong))).await, Err(Error::Url)), "{wrong}");
    }
    // Nobody else gets its port, and it does not listen.
    let deaf = tokio::net::TcpSocket::new_v4().unwrap();
    deaf.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = client.send(&request(&url(&format!("http://{}/", deaf.local_addr().unwrap())))).await.unwrap_err();
    assert!(matches!(refused, Error::Connect(_)) && refused.is_retryable(), "{refused}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = url(&format!("http://{}/", silent.local_addr().unwrap()));
    let late = client.send(&Request { timeout: Duration::from_millis(20), ..request(&asked) }).await.unwrap_err();
    assert!(matches!(late, Error::Timeout) && late.is_retryable(), "{late}");
    let (address, serving) = server(b"no http");
    let broken = client.send(&request(&url(&format!("http://{address}/")))).await.unwrap_err();
    assert!(matches!(broken, Error::Broken(_)) && broken.is_retryable(), "{broken}");
    serving.join().unwrap();
    let (address, serving) = server(b"no tls");
    let plain = client.send(&request(&url(&format!("https://localhost:{}/", address.port())))).await.unwrap_err();
    assert!(matches!(plain, Error::Connect(_)) && plain.is_retryable(), "{plain}");
    assert!(serving.join().unwrap().contains("localhost"), "asked for by its name");
}

#[test]
fn only_addresses_of_the_public_internet_are_asked() {
    let public =
        ["8.8.8.8", "100.63.0.1", "100.128.0.1", "172.32.0.1", "192.0.1.1", "198.20.0.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"];
    for address in public {
        assert!(is_public(address.parse().unwrap()), "{address}");
    }
    let others = [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.9.9.9",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ];
    for address in others {
        assert!(!is_public(address.parse().unwrap()), "{address}");
    }
}
