//! The messages of the control socket: JSON-RPC 2.0, one message a line. Pure: text in, types out, and back.
//!
//! Every method, event and error kind is in one closed enum here, and in `docs/control.md`.

use std::fmt;

use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use super::failure::ErrorKind;
use super::failure::Failure;
use super::overlay::Action;
use super::source::checked_path;
pub(super) use super::source::{ImageSource, InsertParams};
pub use super::stats::{DriveStats, Latencies, LatencyStats, OpcodeStats};
use crate::bot::StallPolicy;
use crate::drive::{DriveIndex, DriveState, Event};
use crate::scsi::Kind;

/// Longest line that a client may send, newline included.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// Changes when a client of the old protocol would misread the new one.
pub const PROTOCOL_VERSION: u32 = 1;

const ID_CHARS_MAX: usize = 128;
const KEY_CHARS_MAX: usize = 64;

/// What a client may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// All drives as they are.
    State,
    /// What drives have done.
    Stats,
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
    /// Do something with what the host wrote to an overlay.
    Overlay,
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
    pub const ALL: [Self; 12] = [
        Self::State,
        Self::Stats,
        Self::Insert,
        Self::Eject,
        Self::Lock,
        Self::Unlock,
        Self::Set,
        Self::Overlay,
        Self::Replug,
        Self::Subscribe,
        Self::Version,
        Self::Shutdown,
    ];

    /// As on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Stats => "stats",
            Self::Insert => "insert",
            Self::Eject => "eject",
            Self::Lock => "lock",
            Self::Unlock => "unlock",
            Self::Set => "set",
            Self::Overlay => "overlay",
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
    Stats(Option<DriveRef>),
    Insert(InsertParams),
    Eject(EjectParams),
    Lock(KeyParams),
    Unlock(UnlockParams),
    Set(DriveRef, Option<String>, Change),
    Overlay(OverlayParams, Action),
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
pub(super) struct OverlayParams {
    pub(super) drive: DriveRef,
    action: String,
    file: Option<String>,
    #[serde(default)]
    pub(super) force: bool,
    pub(super) key: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatsParams {
    drive: Option<DriveRef>,
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
    /// The image of the configuration that it waits for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub awaited: Option<Awaited>,
}

/// An image behind a URL that is inserted when its server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// The URL, without user, password and query.
    pub image: String,
    /// Why the last try failed, if one did.
    pub cause: Option<String>,
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
        Event::SourceOffline { .. } => "source_offline",
        Event::SourceOnline { .. } => "source_online",
        Event::SourceChanged { .. } => "source_changed",
        Event::SourceFailed { .. } => "source_failed",
        Event::AreaMounted { .. } => "area_mounted",
        Event::AreaLost { .. } => "area_lost",
        Event::Failed { .. } => "failed",
        Event::Fetching { .. } => "fetching",
        Event::Fetched { .. } => "fetched",
        Event::Copying { .. } => "copying",
    }
}

/// Every [`event_name`].
pub const EVENTS: [&str; 19] = [
    "inserted",
    "ejected",
    "prevented",
    "first_read",
    "source_offline",
    "source_online",
    "source_changed",
    "source_failed",
    "area_mounted",
    "area_lost",
    "connected",
    "disconnected",
    "reset",
    "suspended",
    "resumed",
    "failed",
    "fetching",
    "fetched",
    "copying",
];

/// A choice of events: bit n is `EVENTS[n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EventSet(u32);

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
        Method::Stats => Call::Stats(typed::<StatsParams>(params)?.drive),
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
        Method::Overlay => parse_overlay(typed(params)?)?,
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

fn parse_overlay(params: OverlayParams) -> Result<Call, Failure> {
    let action = match (params.action.as_str(), &params.file) {
        ("commit", None) => Action::Commit,
        ("discard", None) => Action::Discard,
        ("export", Some(file)) => Action::Export(checked_path("file", file)?.into()),
        _ => {
            return Err(Failure::params(
                "`action` is commit, discard, or export, which alone takes a `file`, and must",
            ));
        }
    };
    Ok(Call::Overlay(params, action))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Values that look like requests often enough to get past the first check.
    fn value() -> impl Strategy<Value = Value> {
        let words: Vec<_> = ["2.0", "jsonrpc", "cd", "/a", "auto", "disk", "inserted"]
            .into_iter()
            .chain(Method::ALL.map(Method::name))
            .collect();
        let names = [
            "drive", "path", "url", "fd", "name", "kind", "rw", "key", "force", "stall", "events", "id",
            "other",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            prop::sample::select(words).prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, move |inner| {
            let key = prop::sample::select(names.to_vec()).prop_map(str::to_owned);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key, inner, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Whatever a line says, it is a request or has one line of JSON for an answer.
    fn check(line: &[u8]) {
        if let Err((id, failure)) = parse(line) {
            let answer = answer(&id, Err(failure));
            assert_eq!(answer.iter().filter(|byte| **byte == b'\n').count(), 1);
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            assert!(answer["error"]["data"]["cure"].is_string());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(line in prop::collection::vec(any::<u8>(), 0..256)) {
            check(&line);
        }

        #[test]
        fn any_call_is_answered(
            method in prop::sample::select(Method::ALL.to_vec()),
            params in value(),
            id in value(),
        ) {
            let method = method.name();
            let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
            check(request.to_string().as_bytes());
        }
    }
}
