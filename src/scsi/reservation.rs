//! Reservations: PERSISTENT RESERVE IN and OUT (SPC-4 §5.13), RESERVE and RELEASE (SPC-2).
//!
//! USB has one initiator, so a reservation never keeps anybody out. Hosts use them all the same, to see whether a disk may be
//! shared, and want to read back what they wrote.
//!
//! ```text
//!   unregistered ──REGISTER key──► registered ──RESERVE──► holds a reservation
//!        ▲                             ▲                        │
//!        └── REGISTER 0, CLEAR, PREEMPT own key ──┘◄── RELEASE ─┘
//! ```
//! Bulk-Only Transport has no RESERVATION CONFLICT status. Where SPC-4 wants it, the key in the list is what is wrong, and
//! INVALID FIELD IN PARAMETER LIST points at it.

use super::cdb::Cdb;
use super::pending::List;
use super::response::Response;
use super::sense::{INVALID_RELEASE_OF_PERSISTENT_RESERVATION, PARAMETER_LIST_LENGTH_ERROR, Sense};
use super::target::Outcome;
use super::unit::Unit;

/// Length of every PERSISTENT RESERVE OUT parameter list that we take.
const LIST_LEN: u32 = 24;
/// Where the list has its two keys and its flags.
const RESERVATION_KEY: usize = 0;
const SERVICE_ACTION_KEY: usize = 8;
const FLAGS: usize = 20;

/// The SPC-2 commands. With one initiator both always succeed; beside a registration they have no effect (SPC-4 §5.13.3, which
/// our CRH allows).
pub(super) fn reserve_or_release(_: &mut Unit, _: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    Ok(Outcome::Done)
}

/// Persistent reservation type (SPC-4, type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    WriteExclusive,
    ExclusiveAccess,
    WriteExclusiveRegistrantsOnly,
    ExclusiveAccessRegistrantsOnly,
    WriteExclusiveAllRegistrants,
    ExclusiveAccessAllRegistrants,
}

impl Type {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrantsOnly,
            6 => Self::ExclusiveAccessRegistrantsOnly,
            7 => Self::WriteExclusiveAllRegistrants,
            8 => Self::ExclusiveAccessAllRegistrants,
            _ => return None,
        })
    }

    const fn code(self) -> u8 {
        match self {
            Self::WriteExclusive => 1,
            Self::ExclusiveAccess => 3,
            Self::WriteExclusiveRegistrantsOnly => 5,
            Self::ExclusiveAccessRegistrantsOnly => 6,
            Self::WriteExclusiveAllRegistrants => 7,
            Self::ExclusiveAccessAllRegistrants => 8,
        }
    }

    /// Every registrant holds it, so that no key names its holder.
    const fn is_held_by_all(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }
}

/// What PERSISTENT RESERVE OUT does once its list is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Register,
    RegisterAndIgnoreExistingKey,
    Reserve(Type),
    Release(Type),
    Clear,
    /// PREEMPT AND ABORT too: nothing else is under way that could be aborted.
    Preempt(Type),
}

/// The only initiator's registration and reservation. They outlive resets and are lost with the power (APTPL zero).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reservations {
    generation: u32,
    /// Zero: not registered.
    key: u64,
    /// Only while registered.
    held: Option<Type>,
}

/// READ KEYS, READ RESERVATION, REPORT CAPABILITIES, READ FULL STATUS.
pub(super) fn persistent_reserve_in(
    unit: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let reservations = &unit.reservations;
    match cdb.byte::<1>() & 0x1F {
        0x00 => reservations.read_keys(out),
        0x01 => reservations.read_reservation(out),
        0x02 => report_capabilities(out),
        _ => reservations.read_full_status(out),
    }
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}

/// Reads scope and type where they count, then asks for the list.
pub(super) fn persistent_reserve_out(
    _: &mut Unit,
    cdb: &Cdb,
    _: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let action = match cdb.byte::<1>() & 0x1F {
        0x00 => Action::Register,
        0x01 => Action::Reserve(scope_and_type(cdb)?),
        0x02 => Action::Release(scope_and_type(cdb)?),
        0x03 => Action::Clear,
        0x06 => Action::RegisterAndIgnoreExistingKey,
        _ => Action::Preempt(scope_and_type(cdb)?),
    };
    if cdb.be32::<5>() != LIST_LEN {
        return Err(PARAMETER_LIST_LENGTH_ERROR);
    }
    Ok(Outcome::Parameters { len: LIST_LEN, list: List::Reservation(action) })
}

/// LU_SCOPE only.
fn scope_and_type(cdb: &Cdb) -> Result<Type, Sense> {
    let byte = cdb.byte::<2>();
    if byte >> 4 != 0 {
        return Err(Sense::in_cdb_bit(2, 7));
    }
    Type::from_code(byte).ok_or(Sense::in_cdb_bit(2, 3))
}

/// CRH; all types, and the mask that says so is valid. Nothing is kept without power.
fn report_capabilities(out: &mut Response<'_>) {
    out.push(&[0, 8, 0x10, 0x80, 0xEA, 0x01, 0, 0]);
}

impl Reservations {
    /// Key, generation, and the code of the type that is held, or 0.
    pub(super) fn keep(&self) -> (u64, u32, u8) {
        (self.key, self.generation, self.held.map_or(0, Type::code))
    }

    /// What [`Reservations::keep`] gave.
    pub(super) fn resume(key: u64, generation: u32, held: u8) -> Option<Self> {
        let held = if held == 0 { None } else { Some(Type::from_code(held)?) };
        (key != 0 || held.is_none()).then_some(Self { generation, key, held })
    }

    fn header(&self, out: &mut Response<'_>) -> usize {
        out.be32(self.generation);
        let at = out.len();
        out.be32(0);
        at
    }

    fn read_keys(&self, out: &mut Response<'_>) {
        let at = self.header(out);
        if self.key != 0 {
            out.be64(self.key);
        }
        out.seal32(at);
    }

    fn read_reservation(&self, out: &mut Response<'_>) {
        let at = self.header(out);
        if let Some(held) = self.held {
            out.be64(if held.is_held_by_all() { 0 } else { self.key });
            out.zeros(5);
            out.byte(held.code());
            out.zeros(2);
        }
        out.seal32(at);
    }

    /// One descriptor. USB has no TransportID of its own, so it is one of no specific protocol (SPC-4 §7.6).
    fn read_full_status(&self, out: &mut Response<'_>) {
        let at = self.header(out);
        if self.key != 0 {
            out.be64(self.key);
            out.zeros(4);
            // R_HOLDER; scope and type only where it is set.
            out.push(&[u8::from(self.held.is_some()), self.held.map_or(0, Type::code)]);
            out.zeros(4);
            out.be16(1);
            out.be32(24);
            out.byte(0x0F);
            out.zeros(23);
        }
        out.seal32(at);
    }

    /// Carries `action` out with its parameter list.
    pub(super) fn accept(&mut self, action: Action, list: &[u8]) -> Result<(), Sense> {
        let key = |at: usize| list.get(at..).and_then(<[u8]>::first_chunk).copied().map(u64::from_be_bytes);
        let (Some(sent), Some(new), Some(flags), Ok(LIST_LEN)) =
            (key(RESERVATION_KEY), key(SERVICE_ACTION_KEY), list.get(FLAGS), u32::try_from(list.len()))
        else {
            return Err(PARAMETER_LIST_LENGTH_ERROR);
        };
        // SPEC_I_PT names other initiators, APTPL asks for memory without power; ALL_TG_PT changes nothing, as there is one port.
        // Other actions have none of them.
        let registers = matches!(action, Action::Register | Action::RegisterAndIgnoreExistingKey);
        if registers && flags & !0x04 != 0 {
            return Err(Sense::in_parameters(FLAGS));
        }
        if action != Action::RegisterAndIgnoreExistingKey && sent != self.key {
            return Err(Sense::in_parameters(RESERVATION_KEY));
        }
        match action {
            Action::Register | Action::RegisterAndIgnoreExistingKey => self.register(new),
            // Without a registration nothing but REGISTER goes.
            _ if self.key == 0 => return Err(Sense::in_parameters(RESERVATION_KEY)),
            Action::Reserve(kind) => return self.reserve(kind),
            Action::Release(kind) => return self.release(kind),
            Action::Clear => self.unregister(),
            Action::Preempt(kind) => return self.preempt(new, kind),
        }
        Ok(())
    }

    fn register(&mut self, new: u64) {
        match (self.key, new) {
            (0, 0) => {}
            (_, 0) => self.unregister(),
            (_, new) => {
                self.key = new;
                self.count();
            }
        }
    }

    fn unregister(&mut self) {
        self.key = 0;
        self.held = None;
        self.count();
    }

    /// PRGENERATION, which wraps.
    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    fn reserve(&mut self, kind: Type) -> Result<(), Sense> {
        if self.held.is_some_and(|held| held != kind) {
            return Err(Sense::in_parameters(RESERVATION_KEY));
        }
        self.held = Some(kind);
        Ok(())
    }

    fn release(&mut self, kind: Type) -> Result<(), Sense> {
        if self.held.is_some_and(|held| held != kind) {
            return Err(INVALID_RELEASE_OF_PERSISTENT_RESERVATION);
        }
        self.held = None;
        Ok(())
    }

    /// The only registrant can only preempt itself (SPC-4 §5.13.11.4). The holder that `victim` names gives way to a reservation of
    /// this type, zero naming those that hold it together; a registration that is not so named goes.
    fn preempt(&mut self, victim: u64, kind: Type) -> Result<(), Sense> {
        let holder = self.held.map(|held| if held.is_held_by_all() { 0 } else { self.key });
        if holder == Some(victim) {
            self.held = Some(kind);
            self.count();
        } else if victim == self.key {
            self.unregister();
        } else {
            return Err(Sense::in_parameters(SERVICE_ACTION_KEY));
        }
        Ok(())
    }
}
