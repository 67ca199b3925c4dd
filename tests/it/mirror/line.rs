//! A line to a server over which requests and answers are lost now and then. It keeps a book of what went over it.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What may happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Mishap {
    /// It is done, and its answer lost.
    Lost,
    /// It is refused with 429.
    Refused,
    /// It is answered by 500, and not done.
    Failed,
    /// The connection is cut before it is done.
    Cut,
    /// It is done at once, and answered after whoever asked has given up.
    Late,
    /// It is done after whoever asked has given up.
    Delayed,
}

#[derive(Default)]
struct Book {
    /// What happens to requests by their number, and after how many again.
    turns: Vec<(Mishap, u64)>,
    requests: u64,
    happened: BTreeMap<Mishap, u64>,
    /// Requests that write and came through: when, and of which object.
    writes: Vec<(Instant, String)>,
    /// Statuses of the server's own answers.
    statuses: HashMap<u16, u64>,
}

/// The line.
pub(super) struct Line {
    address: String,
    book: Arc<Mutex<Book>>,
}

impl Line {
    pub(super) fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let book = Arc::new(Mutex::new(Book::default()));
        let (server, kept) = (server.to_owned(), Arc::clone(&book));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (server, book) = (server.clone(), Arc::clone(&kept));
                std::thread::spawn(move || carry(stream, &server, &book).unwrap_or_default());
            }
        });
        Self { address, book }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// What happens from now on, each to one request of so many.
    pub(super) fn mishaps(&self, turns: &[(Mishap, u64)]) {
        let mut book = self.book.lock().unwrap();
        book.turns = turns.to_vec();
        for (mishap, _) in turns {
            book.happened.entry(*mishap).or_default();
        }
    }

    pub(super) fn happened(&self) -> BTreeMap<Mishap, u64> {
        self.book.lock().unwrap().happened.clone()
    }

    /// Paths of what was written.
    pub(super) fn writes(&self) -> Vec<String> {
        self.book.lock().unwrap().writes.iter().map(|(_, path)| path.clone()).collect()
    }

    pub(super) fn statuses(&self, status: u16) -> u64 {
        self.book.lock().unwrap().statuses.get(&status).copied().unwrap_or_default()
    }

    /// No object was written more often than allowed: 17 times a second, with two seconds' worth at once.
    pub(super) fn assert_budget(&self) {
        let book = self.book.lock().unwrap();
        let mut of_object: HashMap<&str, Vec<Instant>> = HashMap::new();
        for (at, path) in &book.writes {
            of_object.entry(object(path)).or_default().push(*at);
        }
        assert!(of_object.values().any(|times| times.len() >= 30), "some object is written often");
        for (object, times) in of_object {
            for (first, began) in times.iter().enumerate() {
                for (last, at) in times.iter().enumerate().skip(first) {
                    // A process that was killed has spent what the next one begins with.
                    let allowed = 2.0 * 34.0 + 17.0 * at.duration_since(*began).as_secs_f64() + 2.0;
                    assert!((last - first + 1) as f64 <= allowed, "{object}: {} writes in {:?}", last - first + 1, at.duration_since(*began));
                }
            }
        }
    }
}

/// `/Maps/name` of a path.
fn object(path: &str) -> &str {
    let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
    // /v1/Services/IS.../Maps/name/...
    let end = ends.get(5).copied().unwrap_or(path.len());
    &path[ends[3]..end]
}

/// A request as it came: its head's lines and its body.
struct Request {
    head: Vec<u8>,
    first: String,
    body: Vec<u8>,
}

fn read(from: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let (mut head, mut first, mut length) = (Vec::new(), None, 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        head.extend_from_slice(line.as_bytes());
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        first.get_or_insert_with(|| line.to_owned());
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Some(Request { head, first: first.unwrap_or_default(), body }))
}

fn carry(client: TcpStream, server: &str, book: &Mutex<Book>) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (mut from, mut to) = (BufReader::new(client), BufReader::new(server));
    while let Some(request) = read(&mut from)? {
        let mishap = {
            let mut book = book.lock().unwrap();
            book.requests += 1;
            // Of several whose turn it is the first.
            let requests = book.requests;
            let found = book.turns.iter().find(|(_, every)| requests % every == every / 2).map(|(mishap, _)| *mishap);
            if let Some(mishap) = found {
                *book.happened.entry(mishap).or_default() += 1;
            }
            found
        };
        let told = |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{{}}");
        match mishap {
            Some(Mishap::Cut) => return Ok(()),
            Some(Mishap::Refused) => from.get_mut().write_all(told("429 Too Many Requests").as_bytes())?,
            Some(Mishap::Failed) => from.get_mut().write_all(told("500 Internal Server Error").as_bytes())?,
            Some(Mishap::Lost | Mishap::Late | Mishap::Delayed) | None => {
                if mishap == Some(Mishap::Delayed) {
                    std::thread::sleep(Duration::from_secs(3));
                }
                let mut words = request.first.split(' ');
                let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                if method != "GET" {
                    book.lock().unwrap().writes.push((Instant::now(), path.to_owned()));
                }
                to.get_mut().write_all(&request.head)?;
                to.get_mut().write_all(&request.body)?;
                let Some(answer) = read(&mut to)? else { return Ok(()) };
                let status: u16 = answer.first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
                *book.lock().unwrap().statuses.entry(status).or_default() += 1;
                match mishap {
                    Some(Mishap::Lost) => return Ok(()),
                    Some(Mishap::Late) => std::thread::sleep(Duration::from_secs(3)),
                    _ => {}
                }
                from.get_mut().write_all(&answer.head)?;
                from.get_mut().write_all(&answer.body)?;
            }
        }
    }
    Ok(())
}
