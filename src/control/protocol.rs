//! The messages of the control socket: JSON-RPC 2.0, one message a line. Pure: text in, types out, and back.
//!
//! Every method, event and error kind is in one closed enum here, and in `docs/control.md`.

use std::fmt;

use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::bot::StallPolicy;
use crate::drive::{DriveIndex, DriveState, Event, Refusal};
use crate::scsi::Kind;

/// Longest line that a client may send, newline included.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// Changes when a client of the old protocol would misread the new one.
pub const PROTOCOL_VERSION: u32 = 1;

const ID_CHARS_MAX: usize = 128;
const KEY_CHARS_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 255;
/// PATH_MAX, without its NUL.
const PATH_BYTES_MAX: usize = 4095;

/// What a client may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// All drives as they are.
    State,
    /// Put an image into a drive.
    Insert,
    /// Take it out.
    Eject,
    /// Keep other clients from changing a drive.
    Lock,
    /// Let them again.
    Unlock,
    /// Change a setting of a drive.
    Set,
    /// Unplug the gadget from the host and plug it in again.
    Replug,
    /// Ask for events.
    Subscribe,
    /// Which daemon this is.
    Version,
    /// End the daemon.
    Shutdown,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::State,
        Self::Insert,
        Self::Eject,
        Self::Lock,
        Self::Unlock,
        Self::Set,
        Self::Replug,
        Self::Subscribe,
        Self::Version,
        Self::Shutdown,
    ];

    /// As on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Insert => "insert",
            Self::Eject => "eject",
            Self::Lock => "lock",
            Self::Unlock => "unlock",
            Self::Set => "set",
            Self::Replug => "replug",
            Self::Subscribe => "subscribe",
            Self::Version => "version",
            Self::Shutdown => "shutdown",
        }
    }
}

/// A checked request.
#[derive(Debug)]
pub(super) struct Request {
    /// Returned with the answer, as it came.
    pub(super) id: Value,
    pub(super) call: Call,
}

/// A method with its parameters.
#[derive(Debug)]
pub(super) enum Call {
    State,
    Insert(InsertParams),
    Eject(EjectParams),
    Lock(KeyParams),
    Unlock(UnlockParams),
    Set(DriveRef, Option<String>, Change),
    Replug,
    Subscribe(EventSet),
    Version,
    Shutdown,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    ReadWrite(bool),
    Kind(Kind),
    Stall(StallPolicy),
}

/// A drive as a client names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DriveRef {
    Index(u64),
    Name(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InsertParams {
    pub(super) drive: DriveRef,
    path: Option<String>,
    #[serde(default)]
    fd: bool,
    name: Option<String>,
    pub(super) kind: Option<Kind>,
    pub(super) rw: Option<bool>,
    pub(super) key: Option<String>,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ImageSource {
    Path(String),
    Descriptor { name: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EjectParams {
    pub(super) drive: DriveRef,
    #[serde(default)]
    pub(super) force: bool,
    pub(super) key: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyParams {
    pub(super) drive: DriveRef,
    pub(super) key: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnlockParams {
    pub(super) drive: DriveRef,
    pub(super) key: Option<String>,
    #[serde(default)]
    pub(super) force: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetParams {
    drive: DriveRef,
    key: Option<String>,
    rw: Option<bool>,
    kind: Option<Kind>,
    stall: Option<StallPolicy>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscribeParams {
    events: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParams {}

/// One drive in the result of `state`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveReport {
    /// As the function's thread reports it.
    #[serde(flatten)]
    pub drive: DriveState,
    /// Whether a client holds it locked.
    pub locked: bool,
}

/// Why a request was not carried out, for a program. A closed list; codes never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The line is not JSON.
    Parse,
    /// It is, but no request.
    InvalidRequest,
    /// No such method.
    MethodNotFound,
    /// The method does not take this.
    InvalidParams,
    /// No drive has that index or name.
    NoSuchDrive,
    /// Another client holds the drive.
    Locked,
    /// Nobody does.
    NotLocked,
    /// The host prevents removal.
    Prevented,
    /// There is an image in the drive.
    Occupied,
    /// There is none.
    Empty,
    /// The setting cannot change while there is one.
    Inserted,
    /// Optical drives are read-only.
    Optical,
    /// The drive is not of the kind asked for.
    WrongKind,
    /// The image cannot be opened or used.
    Image,
    /// What the host wrote could not be stored.
    Sync,
    /// The file descriptor is missing, or there are several.
    Descriptor,
    /// Too much at once.
    Busy,
    /// The function has stopped.
    Stopped,
    /// The gadget could not be plugged in again.
    Replug,
    /// The peer may not use the socket.
    NotPermitted,
    /// All places are taken.
    TooManyClients,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::Parse,
        Self::InvalidRequest,
        Self::MethodNotFound,
        Self::InvalidParams,
        Self::NoSuchDrive,
        Self::Locked,
        Self::NotLocked,
        Self::Prevented,
        Self::Occupied,
        Self::Empty,
        Self::Inserted,
        Self::Optical,
        Self::WrongKind,
        Self::Image,
        Self::Sync,
        Self::Descriptor,
        Self::Busy,
        Self::Stopped,
        Self::Replug,
        Self::NotPermitted,
        Self::TooManyClients,
    ];

    /// JSON-RPC's own code, or ours: from 1.
    pub const fn code(self) -> i32 {
        match self {
            Self::Parse => -32700,
            Self::InvalidRequest => -32600,
            Self::MethodNotFound => -32601,
            Self::InvalidParams => -32602,
            Self::NoSuchDrive => 1,
            Self::Locked => 2,
            Self::NotLocked => 3,
            Self::Prevented => 4,
            Self::Occupied => 5,
            Self::Empty => 6,
            Self::Inserted => 7,
            Self::Optical => 8,
            Self::WrongKind => 9,
            Self::Image => 10,
            Self::Sync => 11,
            Self::Descriptor => 12,
            Self::Busy => 13,
            Self::Stopped => 14,
            Self::Replug => 15,
            Self::NotPermitted => 16,
            Self::TooManyClients => 17,
        }
    }

    /// `data.kind`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::InvalidRequest => "invalid_request",
            Self::MethodNotFound => "method_not_found",
            Self::InvalidParams => "invalid_params",
            Self::NoSuchDrive => "no_such_drive",
            Self::Locked => "locked",
            Self::NotLocked => "not_locked",
            Self::Prevented => "prevented",
            Self::Occupied => "occupied",
            Self::Empty => "empty",
            Self::Inserted => "inserted",
            Self::Optical => "optical",
            Self::WrongKind => "wrong_kind",
            Self::Image => "image",
            Self::Sync => "sync",
            Self::Descriptor => "descriptor",
            Self::Busy => "busy",
            Self::Stopped => "stopped",
            Self::Replug => "replug",
            Self::NotPermitted => "not_permitted",
            Self::TooManyClients => "too_many_clients",
        }
    }
}

/// An error object before it is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) cause: String,
    pub(super) cure: String,
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { kind, cause: cause.into(), cure: cure.into() }
    }

    /// From a message of the form "cause; cure".
    pub(super) fn from_message(kind: ErrorKind, message: &str) -> Self {
        let (cause, cure) = message.rsplit_once("; ").unwrap_or((message, "see the daemon's log"));
        Self::new(kind, cause, cure)
    }

    fn params(cause: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidParams, cause, "see the method in docs/control.md")
    }

    fn request(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, cause, cure)
    }
}

impl From<&Refusal> for Failure {
    fn from(refusal: &Refusal) -> Self {
        let kind = match refusal {
            Refusal::Prevented => ErrorKind::Prevented,
            Refusal::Occupied(_) => ErrorKind::Occupied,
            Refusal::Empty => {
                return Self::new(ErrorKind::Empty, refusal.to_string(), "insert an image first");
            }
            Refusal::NoDrive => ErrorKind::NoSuchDrive,
            Refusal::KindChanged => ErrorKind::WrongKind,
            Refusal::Inserted(_) => ErrorKind::Inserted,
            Refusal::Optical => ErrorKind::Optical,
            Refusal::Sync(_) => ErrorKind::Sync,
            Refusal::Busy => ErrorKind::Busy,
            Refusal::Stopped => ErrorKind::Stopped,
        };
        Self::from_message(kind, &refusal.to_string())
    }
}

/// The tag of an event.
pub const fn event_name(event: &Event) -> &'static str {
    match event {
        Event::Inserted { .. } => "inserted",
        Event::Ejected { .. } => "ejected",
        Event::Prevented { .. } => "prevented",
        Event::FirstRead { .. } => "first_read",
        Event::Connected { .. } => "connected",
        Event::Disconnected { .. } => "disconnected",
        Event::Reset { .. } => "reset",
        Event::Suspended { .. } => "suspended",
        Event::Resumed { .. } => "resumed",
        Event::Failed { .. } => "failed",
    }
}

/// Every [`event_name`].
pub const EVENTS: [&str; 10] = [
    "inserted",
    "ejected",
    "prevented",
    "first_read",
    "connected",
    "disconnected",
    "reset",
    "suspended",
    "resumed",
    "failed",
];

/// A choice of events: bit n is `EVENTS[n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EventSet(u16);

impl EventSet {
    const ALL: Self = Self((1 << EVENTS.len()) - 1);

    pub(super) fn contains(self, name: &str) -> bool {
        EVENTS.iter().position(|event| *event == name).is_some_and(|bit| self.0 & (1 << bit) != 0)
    }

    pub(super) fn names(self) -> Vec<&'static str> {
        EVENTS.into_iter().filter(|name| self.contains(name)).collect()
    }

    fn parse(names: &[String]) -> Result<Self, Failure> {
        names.iter().try_fold(Self(0), |set, name| match EVENTS.iter().position(|event| event == name) {
            Some(bit) => Ok(Self(set.0 | 1 << bit)),
            None => Err(Failure::params(format!(
                "there is no event {name:?}; the events are {}",
                EVENTS.join(", ")
            ))),
        })
    }
}

impl<'de> Deserialize<'de> for DriveRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = DriveRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a drive's index or name")
            }

            fn visit_u64<E: de::Error>(self, index: u64) -> Result<DriveRef, E> {
                Ok(DriveRef::Index(index))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<DriveRef, E> {
                Ok(DriveRef::Name(name.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl fmt::Display for DriveRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => write!(f, "{name:?}"),
        }
    }
}

impl InsertParams {
    pub(super) fn wants_descriptor(&self) -> bool {
        self.fd
    }

    /// Exactly one source.
    pub(super) fn source(&self) -> Result<ImageSource, Failure> {
        match (&self.path, self.fd, &self.name) {
            (Some(_), true, _) | (None, false, _) => {
                Err(Failure::params("insert takes either `path` or `fd: true`"))
            }
            (Some(_), false, Some(_)) => {
                Err(Failure::params("`name` goes with `fd: true`; a path is its own name"))
            }
            (Some(path), false, None)
                if !path.starts_with('/') || path.contains('\0') || path.len() > PATH_BYTES_MAX =>
            {
                Err(Failure::params(format!(
                    "`path` is not an absolute path of at most {PATH_BYTES_MAX} bytes"
                )))
            }
            (Some(path), false, None) => Ok(ImageSource::Path(path.clone())),
            (None, true, Some(name)) if name.is_empty() || name.len() > NAME_BYTES_MAX => {
                Err(Failure::params(format!("`name` is not of 1 to {NAME_BYTES_MAX} bytes")))
            }
            (None, true, name) => {
                Ok(ImageSource::Descriptor { name: name.as_deref().unwrap_or("descriptor").to_owned() })
            }
        }
    }
}

/// Reads a line without its newline. An error comes with the id to answer to, as far as there is one.
pub(super) fn parse(line: &[u8]) -> Result<Request, (Value, Failure)> {
    let value: Value = serde_json::from_slice(line).map_err(|error| {
        let cure = "send one JSON-RPC 2.0 object a line, in UTF-8";
        (Value::Null, Failure::new(ErrorKind::Parse, format!("the line is not JSON: {error}"), cure))
    })?;
    let mut message = match value {
        Value::Object(message) => message,
        Value::Array(_) => {
            let failure = Failure::request("batches are not supported", "send one request a line");
            return Err((Value::Null, failure));
        }
        _ => {
            let failure = Failure::request("the line is no object", "send one JSON-RPC 2.0 object a line");
            return Err((Value::Null, failure));
        }
    };
    let id = take_id(&mut message).map_err(|failure| (Value::Null, failure))?;
    match parse_call(message) {
        Ok(call) => Ok(Request { id, call }),
        Err(failure) => Err((id, failure)),
    }
}

fn take_id(message: &mut Map<String, Value>) -> Result<Value, Failure> {
    match message.remove("id") {
        Some(Value::String(id)) if id.chars().count() > ID_CHARS_MAX => Err(Failure::request(
            format!("the id is longer than {ID_CHARS_MAX} characters"),
            "use a number or a short string",
        )),
        Some(id @ (Value::String(_) | Value::Number(_))) => Ok(id),
        Some(_) => {
            Err(Failure::request("the id is neither a number nor a string", "use a number or a short string"))
        }
        None => Err(Failure::request(
            "there is no id, and every request here is answered",
            "add `\"id\"`, a number or a short string",
        )),
    }
}

fn parse_call(mut message: Map<String, Value>) -> Result<Call, Failure> {
    if message.remove("jsonrpc") != Some(json!("2.0")) {
        return Err(Failure::request("this is not JSON-RPC 2.0", "add `\"jsonrpc\": \"2.0\"`"));
    }
    let Some(Value::String(method)) = message.remove("method") else {
        return Err(Failure::request(
            "there is no method, or it is no string",
            "add `\"method\": \"state\"`",
        ));
    };
    let params = match message.remove("params") {
        None => Map::new(),
        Some(Value::Object(params)) => params,
        Some(_) => return Err(Failure::params("`params` is no object; parameters go by name")),
    };
    if let Some(unknown) = message.keys().next() {
        return Err(Failure::request(
            format!("a request has no member {unknown:?}"),
            "its members are jsonrpc, id, method, params",
        ));
    }
    let Some(method) = Method::ALL.into_iter().find(|known| known.name() == method) else {
        let shown: String = method.chars().take(64).collect();
        let known = Method::ALL.map(Method::name).join(", ");
        return Err(Failure::new(
            ErrorKind::MethodNotFound,
            format!("there is no method {shown:?}"),
            format!("the methods are {known}"),
        ));
    };
    Ok(match method {
        Method::State => typed::<NoParams>(params).map(|_| Call::State)?,
        Method::Replug => typed::<NoParams>(params).map(|_| Call::Replug)?,
        Method::Version => typed::<NoParams>(params).map(|_| Call::Version)?,
        Method::Shutdown => typed::<NoParams>(params).map(|_| Call::Shutdown)?,
        Method::Insert => Call::Insert(typed(params)?),
        Method::Eject => Call::Eject(typed(params)?),
        Method::Lock => {
            let params: KeyParams = typed(params)?;
            check_new_key(params.key.as_deref())?;
            Call::Lock(params)
        }
        Method::Unlock => Call::Unlock(typed(params)?),
        Method::Set => parse_set(typed(params)?)?,
        Method::Subscribe => Call::Subscribe(match typed::<SubscribeParams>(params)?.events {
            None => EventSet::ALL,
            Some(names) => EventSet::parse(&names)?,
        }),
    })
}

fn typed<T: DeserializeOwned>(params: Map<String, Value>) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(params)).map_err(|error| Failure::params(error.to_string()))
}

/// One change a request: two, of which one is refused, would be half done.
fn parse_set(params: SetParams) -> Result<Call, Failure> {
    let change = match (params.rw, params.kind, params.stall) {
        (Some(rw), None, None) => Change::ReadWrite(rw),
        (None, Some(kind), None) => Change::Kind(kind),
        (None, None, Some(stall)) => Change::Stall(stall),
        _ => return Err(Failure::params("set takes exactly one of `rw`, `kind` and `stall`")),
    };
    Ok(Call::Set(params.drive, params.key, change))
}

fn check_new_key(key: Option<&str>) -> Result<(), Failure> {
    match key {
        Some(key) if key.is_empty() || key.chars().count() > KEY_CHARS_MAX => {
            Err(Failure::params(format!("`key` is not of 1 to {KEY_CHARS_MAX} characters")))
        }
        _ => Ok(()),
    }
}

/// The answer to a request, with its newline.
pub(super) fn answer(id: &Value, result: Result<Value, Failure>) -> Vec<u8> {
    line(&match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(Failure { kind, cause, cure }) => json!({
            "jsonrpc": "2.0",
            "id": id,
            "error": {"code": kind.code(), "message": cause, "data": {"kind": kind.name(), "cure": cure}},
        }),
    })
}

/// A notification, with its newline.
pub(super) fn notification(method: &str, params: &Value) -> Vec<u8> {
    line(&json!({"jsonrpc": "2.0", "method": method, "params": params}))
}

fn line(message: &Value) -> Vec<u8> {
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The result of a method that concerns one drive.
pub(super) fn drive_result(drive: DriveIndex) -> Value {
    json!({"drive": drive})
}
