//! Expected bytes come from usbmon traces of Linux hosts with other people's devices, expected cases from the text of §6.7.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// Bytes from the words of a usbmon text trace.
fn usbmon(words: &str) -> Vec<u8> {
    let digits: Vec<u8> = words.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|b| u8::from_str_radix(str::from_utf8(b).unwrap(), 16).unwrap()).collect()
}

/// READ(10) of 64 blocks, as printed in the kernel's Documentation/usb/usbmon.rst.
const READ_10: &str = "55534243 ad000000 00800000 80010a28 20000000 20000040 00000000 000000";
/// TEST UNIT READY to an empty card reader and the failed CSW it sent; then REQUEST SENSE for 18 bytes, passed.
const TUR: (&str, &str) = (
    "55534243 21000000 00000000 00010600 00000000 00000000 00000000 000000",
    "55534253 21000000 00000000 01",
);
const REQUEST_SENSE: (&str, &str) = (
    "55534243 22000000 12000000 80010603 00000012 00000000 00000000 000000",
    "55534253 22000000 00000000 00",
);
/// ATA PASS-THROUGH of 512 bytes that a bridge answered with no data: passed, residue 512.
const NO_DATA: (&str, &str) = (
    "55534243 22000000 00020000 80001085 082e0000 00000000 00000000 40ec00",
    "55534253 22000000 00020000 00",
);

fn cbw(expected: Expected) -> Vec<u8> {
    let mut bytes = usbmon(READ_10);
    bytes[8..12].copy_from_slice(&expected.len().to_le_bytes());
    bytes[12] = if matches!(expected, Expected::In(_)) { 0x80 } else { 0 };
    bytes
}

fn opened(expected: Expected, stall: StallPolicy) -> Bot {
    let mut bot = Bot::new(stall);
    assert_eq!(bot.receive_cbw(&cbw(expected)).unwrap().expected, expected);
    bot
}

#[test]
fn a_cbw_that_linux_sent_is_understood() {
    let command = Bot::new(StallPolicy::Auto).receive_cbw(&usbmon(READ_10)).unwrap();
    assert_eq!((command.lun, command.expected), (Lun(1), Expected::In(32768)));
    assert_eq!(*command.cdb, [0x28, 0x20, 0, 0, 0, 0x20, 0, 0, 0x40, 0]);
}

#[test]
fn csws_are_those_that_real_devices_sent_to_linux() {
    let mut bot = Bot::new(StallPolicy::Auto);
    for ((cbw, csw), intent, status, moved) in [
        (TUR, Intent::None, CommandStatus::Failed, 0),
        (REQUEST_SENSE, Intent::In(18), CommandStatus::Passed, 18),
        (NO_DATA, Intent::None, CommandStatus::Passed, 0),
    ] {
        bot.receive_cbw(&usbmon(cbw)).unwrap();
        assert!(bot.plan(intent).execute);
        assert_eq!(bot.finish(status, moved).csw[..], usbmon(csw));
        bot.csw_sent();
    }
}

#[test]
fn no_length_but_31_is_a_cbw() {
    for len in 0..=64 {
        let mut bytes = usbmon(READ_10);
        bytes.resize(len, 0);
        let mut bot = Bot::new(StallPolicy::Auto);
        let result = bot.receive_cbw(&bytes).map(drop);
        match len {
            31 => assert_eq!(result, Ok(())),
            _ => assert_eq!(
                (result, bot.state()),
                (Err(InvalidCbw::Length { actual: len }), State::ResetRequired)
            ),
        }
    }
}

/// Every value of every byte: which of them BOT allows, said field by field.
#[test]
fn each_byte_of_a_cbw_is_checked_or_passed_on_whole() {
    let good = usbmon(READ_10);
    for at in 0..31 {
        for value in 0..=255u8 {
            let mut bytes = good.clone();
            bytes[at] = value;
            let result = Bot::new(StallPolicy::Auto).receive_cbw(&bytes);
            match at {
                0..=3 if value != good[at] => {
                    let actual = u32::from_le_bytes(bytes[..4].try_into().unwrap());
                    assert_eq!(result, Err(InvalidCbw::Signature { actual }));
                }
                12 if value & 0x7f != 0 => {
                    assert_eq!(result, Err(InvalidCbw::Reserved { flags: value, lun: 1 }));
                }
                13 if value >= 16 => {
                    assert_eq!(result, Err(InvalidCbw::Reserved { flags: 0x80, lun: value }));
                }
                14 if value == 0 || value > 16 => assert_eq!(result, Err(InvalidCbw::CdbLength(value))),
                _ => {
                    let command = result.unwrap();
                    let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
                    let direction = if bytes[12] == 0 { Expected::Out } else { Expected::In };
                    let expected = if len == 0 { Expected::None } else { direction(len) };
                    assert_eq!((command.lun, command.expected), (Lun(bytes[13]), expected));
                    assert_eq!(*command.cdb, bytes[15..15 + usize::from(bytes[14])]);
                }
            }
        }
    }
}

#[test]
fn direction_means_nothing_when_the_length_is_zero() {
    for flags in [0, 0x80] {
        let mut bytes = cbw(Expected::None);
        bytes[12] = flags;
        assert_eq!(Bot::new(StallPolicy::Auto).receive_cbw(&bytes).unwrap().expected, Expected::None);
    }
}

/// What §6.7 demands of (host, device), found by its case number and not by the shape of our code.
struct Demand {
    case: u8,
    phase: DataPhase,
    execute: bool,
    status: u8,
}

fn demand(host: Expected, device: Intent) -> Demand {
    let (h, d) = (
        u64::from(host.len()),
        match device {
            Intent::None => 0,
            Intent::In(d) | Intent::Out(d) => d,
        },
    );
    let host_kind = match host {
        Expected::None => 'n',
        Expected::In(_) => 'i',
        Expected::Out(_) => 'o',
    };
    let device_kind = match device {
        Intent::In(1..) => 'i',
        Intent::Out(1..) => 'o',
        Intent::None | Intent::In(0) | Intent::Out(0) => 'n',
    };
    let case = match (host_kind, device_kind, h.cmp(&d)) {
        ('n', 'n', _) => 1,
        ('n', 'i', _) => 2,
        ('n', 'o', _) => 3,
        ('i', 'n', _) => 4,
        ('i', 'i', std::cmp::Ordering::Greater) => 5,
        ('i', 'i', std::cmp::Ordering::Equal) => 6,
        ('i', 'i', std::cmp::Ordering::Less) => 7,
        ('i', 'o', _) => 8,
        ('o', 'n', _) => 9,
        ('o', 'i', _) => 10,
        ('o', 'o', std::cmp::Ordering::Greater) => 11,
        ('o', 'o', std::cmp::Ordering::Equal) => 12,
        _ => 13,
    };
    let (h, d) = (host.len(), u32::try_from(d).unwrap_or(u32::MAX));
    let phase = match case {
        1..=3 => DataPhase::None,
        4 | 8 => DataPhase::In { send: 0 },
        5 | 6 => DataPhase::In { send: d },
        7 => DataPhase::In { send: h },
        9 | 10 | 13 => DataPhase::Out { receive: h, keep: 0 },
        _ => DataPhase::Out { receive: h, keep: d },
    };
    let phase_error = matches!(case, 2 | 3 | 7 | 8 | 10 | 13);
    Demand { case, phase, execute: !phase_error || case == 7, status: if phase_error { 2 } else { 0 } }
}

#[test]
fn all_thirteen_cases_end_as_the_standard_says() {
    const HOST: [u32; 12] = [1, 2, 12, 13, 14, 511, 512, 513, 1024, 1025, u32::MAX - 1, u32::MAX];
    const DEVICE: [u64; 15] =
        [0, 1, 2, 12, 13, 14, 511, 512, 513, 1024, 1025, 0xffff_fffe, 0xffff_ffff, 0x1_0000_0000, u64::MAX];
    let mut seen = [0u32; 14];
    let hosts = [Expected::None].into_iter().chain(HOST.map(Expected::In)).chain(HOST.map(Expected::Out));
    for host in hosts {
        let devices = [Intent::None].into_iter().chain(DEVICE.map(Intent::In)).chain(DEVICE.map(Intent::Out));
        for device in devices {
            for stall in [StallPolicy::Auto, StallPolicy::Never] {
                let demand = demand(host, device);
                seen[usize::from(demand.case)] += 1;
                let mut bot = opened(host, stall);
                let plan = bot.plan(device);
                assert_eq!(
                    plan,
                    Plan { phase: demand.phase, execute: demand.execute },
                    "{host:?} {device:?}"
                );
                let moved = match plan.phase {
                    DataPhase::None => 0,
                    DataPhase::In { send } => send,
                    DataPhase::Out { keep, .. } => keep,
                };
                let ending = bot.finish(CommandStatus::Passed, moved);
                assert_eq!(ending.csw[..8], usbmon("55534253 ad000000"));
                assert_eq!(ending.csw[8..12], (host.len() - moved).to_le_bytes(), "{host:?} {device:?}");
                assert_eq!(ending.csw[12], demand.status, "{host:?} {device:?}");
                let unfilled = matches!(host, Expected::In(h) if moved < h);
                let data_end = match stall {
                    _ if !unfilled => DataEnd::Complete,
                    StallPolicy::Auto => DataEnd::StallIn,
                    StallPolicy::Never => DataEnd::ShortPacket,
                };
                assert_eq!(ending.data_end, data_end, "{host:?} {device:?}");
                bot.csw_sent();
                assert_eq!(bot.state(), State::Ready);
            }
        }
    }
    assert!(seen[1..].iter().all(|count| *count > 0), "a case was not reached: {seen:?}");
}

#[test]
fn a_read_that_fails_half_way_ends_early_with_its_residue() {
    for (stall, data_end) in
        [(StallPolicy::Auto, DataEnd::StallIn), (StallPolicy::Never, DataEnd::ShortPacket)]
    {
        let mut bot = opened(Expected::In(4096), stall);
        bot.plan(Intent::In(4096));
        let ending = bot.finish(CommandStatus::Failed, 1024);
        assert_eq!(ending.data_end, data_end);
        assert_eq!(ending.csw[..], usbmon("55534253 ad000000 000c0000 01"));
    }
}

#[test]
fn a_phase_error_outranks_a_failed_command() {
    let mut bot = opened(Expected::None, StallPolicy::Auto);
    assert!(!bot.plan(Intent::In(36)).execute);
    assert_eq!(bot.finish(CommandStatus::Failed, 0).csw[12], 2);
}

#[test]
fn a_new_stall_policy_counts_from_the_next_ending() {
    let mut bot = opened(Expected::In(36), StallPolicy::Auto);
    bot.plan(Intent::None);
    bot.set_stall(StallPolicy::Never);
    assert_eq!(bot.stall(), StallPolicy::Never);
    assert_eq!(bot.finish(CommandStatus::Passed, 0).data_end, DataEnd::ShortPacket);
}

/// A transport in each of the five states.
fn every_state() -> [Bot; 5] {
    let command = || opened(Expected::In(36), StallPolicy::Auto);
    let mut data = command();
    data.plan(Intent::In(36));
    let mut status = command();
    status.plan(Intent::In(36));
    status.finish(CommandStatus::Passed, 36);
    let mut broken = Bot::new(StallPolicy::Auto);
    broken.receive_cbw(b"not a CBW").unwrap_err();
    [Bot::new(StallPolicy::Auto), command(), data, status, broken]
}

#[test]
fn reset_leaves_every_state_for_ready() {
    for mut bot in every_state() {
        bot.reset();
        assert_eq!(bot.state(), State::Ready);
        bot.receive_cbw(&usbmon(READ_10)).unwrap();
    }
}

#[test]
fn after_an_invalid_cbw_a_good_one_is_refused_until_reset() {
    let mut bot = Bot::new(StallPolicy::Never);
    bot.receive_cbw(&[0; 31]).unwrap_err();
    for _ in 0..3 {
        assert_eq!(bot.receive_cbw(&usbmon(READ_10)), Err(InvalidCbw::OutOfTurn));
        assert_eq!(bot.state(), State::ResetRequired);
    }
    bot.reset();
    bot.receive_cbw(&usbmon(READ_10)).unwrap();
}

#[test]
fn a_cbw_out_of_turn_needs_a_reset() {
    for mut bot in every_state().into_iter().skip(1) {
        assert_eq!(bot.receive_cbw(&usbmon(READ_10)), Err(InvalidCbw::OutOfTurn));
        assert_eq!(bot.state(), State::ResetRequired);
    }
}

/// Runs a call that is out of order: it must assert in debug builds, and in no build may the state change.
fn misused<T>(mut bot: Bot, call: impl Fn(&mut Bot) -> T) -> Option<T> {
    let before = bot.state();
    let result = catch_unwind(AssertUnwindSafe(|| call(&mut bot)));
    assert_eq!(result.is_err(), cfg!(debug_assertions), "in state {before:?}");
    assert_eq!(bot.state(), before);
    result.ok()
}

#[test]
fn calls_out_of_order_assert_and_change_nothing() {
    for (index, bot) in every_state().into_iter().enumerate().filter(|(index, _)| *index != 1) {
        let plan = misused(bot, |bot| bot.plan(Intent::In(36)));
        assert!(plan.is_none_or(|plan| !plan.execute), "state {index}");
    }
    for (index, bot) in every_state().into_iter().enumerate().filter(|(index, _)| *index != 2) {
        let ending = misused(bot, |bot| bot.finish(CommandStatus::Passed, 0));
        assert!(ending.is_none_or(|ending| ending.csw[12] == 2), "state {index}");
    }
    for (_, bot) in every_state().into_iter().enumerate().filter(|(index, _)| *index != 3) {
        misused(bot, Bot::csw_sent);
    }
}

#[test]
fn more_bytes_moved_than_expected_never_wrap_the_residue() {
    let mut bot = opened(Expected::In(36), StallPolicy::Auto);
    bot.plan(Intent::In(36));
    let result = catch_unwind(AssertUnwindSafe(|| bot.finish(CommandStatus::Passed, 37)));
    assert_eq!(result.is_err(), cfg!(debug_assertions));
    assert!(result.map_or(true, |ending| ending.csw[8..12] == [0; 4]));
}

#[test]
fn a_cdb_has_1_to_16_bytes() {
    assert_eq!(Cdb::new(&[]), None);
    assert_eq!(Cdb::new(&[0; 17]), None);
    assert_eq!(*Cdb::new(&[7; 16]).unwrap(), [7; 16]);
    assert_eq!(format!("{:?}", Cdb::new(&[0x12, 0]).unwrap()), "Cdb([12, 00])");
}
