use super::*;
use crate::schedule::{Cpus, RealtimePriority};

const EXAMPLE: &str = include_str!("../../docs/ringdrived.toml");
const MANUAL: &str = include_str!("../../docs/configuration.md");

/// The error's text for a configuration that has one.
#[track_caller]
fn refusal(text: &str) -> String {
    Config::parse(text, "test.toml").expect_err("this has a mistake").to_string()
}

/// `at` is LINE:COLUMN, or the beginning of it where the TOML parser alone decides.
#[track_caller]
fn check_refusal(text: &str, at: &str, says: &[&str]) {
    let message = refusal(text);
    assert!(message.starts_with(&format!("test.toml:{at}")), "{message}");
    for part in says {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// One function whose drive has `keys`, which start on line 5.
fn with_drive(keys: &str) -> String {
    format!("[[function]]\nname = \"usb0\"\n[[function.drive]]\nname = \"a\"\n{keys}\n")
}

fn own(config: &Config) -> &OwnGadget {
    match &config.gadget {
        Gadget::Own(own) => own,
        Gadget::Guest => panic!("guest"),
    }
}

#[test]
fn an_empty_file_is_a_cd_and_a_flash_disk() {
    let config = Config::parse("", "test.toml").unwrap();
    assert_eq!(config.control.socket, Path::new("/run/ringdrive/control.sock"));
    assert_eq!(config.control.group, None);
    let drives: Vec<_> = config.functions[0].drives.iter().map(|d| (d.name.as_str(), d.kind)).collect();
    assert_eq!(drives, [("cd", Kind::Optical), ("flash", Kind::Disk)]);
    assert_eq!(config.functions.len(), 1);
    assert_eq!((own(&config).vendor_id.get(), own(&config).product_id), (0x1d6b, 0x0104));
}

#[test]
fn the_usual_drives_are_what_writing_them_out_gives() {
    let written = "[[function]]\nname = 'usb0'\n[[function.drive]]\nname = 'cd'\nkind = 'optical'\n\
                   [[function.drive]]\nname = 'flash'\nkind = 'disk'\n";
    assert_eq!(Config::parse("", "a").unwrap(), Config::parse(written, "b").unwrap());
}

/// The example with all of its keys.
fn example_uncommented() -> String {
    let key = |line: &str| {
        let word = line.strip_prefix('#').and_then(|rest| rest.split(" = ").next())?;
        let is_key = word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        (is_key || word.starts_with("[[")).then(|| line.replacen('#', "", 1))
    };
    EXAMPLE.lines().map(|line| key(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn the_example_as_it_stands_asks_for_nothing_that_a_fresh_machine_lacks() {
    let example = Config::parse(EXAMPLE, "docs/ringdrived.toml").unwrap();
    let mut usual = Config::parse("", "test.toml").unwrap();
    usual.functions[0].drives[1].rw = true;
    assert_eq!(example, usual);
}

#[test]
fn the_example_in_the_manual_is_right_with_all_of_its_keys() {
    let config = Config::parse(&example_uncommented(), "docs/ringdrived.toml").unwrap();
    assert_eq!(own(&config).udc.as_deref(), Some("fe980000.usb"));
    assert_eq!(config.control.group.as_deref(), Some("ringdrive"));
    let flash = &config.functions[0].drives[1];
    assert!(flash.rw);
    assert_eq!(flash.image, Some(StartImage::Path("/srv/images/flash.img".into())));
    assert_eq!(flash.serial, "0123456789AB-1");
    let areas: Vec<_> = config.areas.iter().map(|area| area.source.to_string()).collect();
    assert_eq!(areas, ["nfs://10.0.0.5/srv/iso", "cifs://nas.example/images"]);
}

/// The keys that the parser itself names when it meets one that it does not know.
fn keys(table: &str) -> Vec<String> {
    let message = refusal(table);
    let keys: Vec<_> = message.split('`').skip(3).step_by(2).map(str::to_owned).collect();
    assert!(message.contains("unknown field `zzzzzzzzzzzz`, expected ") && !keys.is_empty(), "{message}");
    keys
}

#[test]
fn every_key_is_in_the_manual_and_in_the_example_and_the_manual_lists_no_other() {
    let unknown = "zzzzzzzzzzzz = 1";
    let sections = [
        ("[control]", format!("[control]\n{unknown}")),
        ("[gadget]", format!("[gadget]\n{unknown}")),
        ("[url]", format!("[url]\n{unknown}")),
        ("[[area]]", format!("[[area]]\n{unknown}")),
        ("[[function]]", format!("[[function]]\n{unknown}")),
        ("[[function.drive]]", with_drive(unknown)),
    ];
    for (section, text) in sections {
        let keys: Vec<_> = keys(&text).into_iter().filter(|key| key != "drive").collect();
        let manual = MANUAL.split(&format!("## `{section}`")).nth(1).expect(section);
        let manual = manual.split("\n## ").next().unwrap();
        let rows: Vec<_> = manual
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .map(str::to_owned)
            .collect();
        assert_eq!(rows, keys, "docs/configuration.md, {section}");
        let example = example_uncommented();
        for key in keys {
            assert!(
                example.lines().any(|line| line.starts_with(&format!("{key} = "))),
                "docs/ringdrived.toml lacks {key} of {section}"
            );
        }
    }
}

#[test]
fn unknown_keys_and_values_are_refused_where_they_stand_with_what_was_meant() {
    check_refusal(
        &with_drive("kind = 'disk'\nimgae = '/a'"),
        "6:1",
        &["unknown field `imgae`", "did you mean `image`?"],
    );
    check_refusal("[gadgte]\n", "1:2", &["did you mean `gadget`?"]);
    check_refusal("[control]\nsokcet = '/a'\n", "2:1", &["did you mean `socket`?"]);
    check_refusal(&with_drive("kind = 'opticl'"), "5:8", &["did you mean `optical`?"]);
    let far = refusal("[control]\nxyzzy = 1\n");
    assert!(far.contains("docs/configuration.md") && !far.contains("did you mean"), "{far}");
}

#[test]
fn what_is_not_toml_is_refused_where_it_stops_being_toml() {
    check_refusal("[control]\nsocket = \n", "2:10", &[]);
    check_refusal("[control]\nsocket = 5\n", "2:10", &["invalid type: integer `5`, expected a string"]);
    check_refusal("[control]\ngroup = 'a'\ngroup = 'b'\n", "3:1", &["duplicate"]);
    check_refusal("[gadget]\nvendor_id = 65536\n", "2:13", &["65536"]);
    check_refusal("\u{0}\u{1}", "1:", &[]);
    check_refusal(&format!("a = {}", "[".repeat(100_000)), "1:", &[]);
}

#[test]
fn columns_count_characters_and_not_bytes() {
    check_refusal("control = { socket = '/é', groop = 'a' }", "1:28", &["did you mean `group`?"]);
}

#[test]
fn strings_that_do_not_fit_their_inquiry_field_are_refused() {
    let disk = |key: &str| with_drive(&format!("kind = 'disk'\n{key}"));
    for (key, len) in [("vendor", 8), ("product", 16), ("revision", 4), ("serial", 64)] {
        let fits = disk(&format!("{key} = '{}'", "x".repeat(len)));
        Config::parse(&fits, "test.toml").unwrap();
        let long = disk(&format!("{key} = '{}'", "x".repeat(len + 1)));
        check_refusal(&long, &format!("6:{}", key.len() + 4), &[&format!("1 to {len} printable ASCII")]);
        refusal(&disk(&format!("{key} = ''")));
        refusal(&disk(&format!("{key} = '  '")));
        refusal(&disk(&format!("{key} = 'é'")));
        refusal(&disk(&format!("{key} = \"a\\n\"")));
    }
}

#[test]
fn names_that_would_clash_or_mislead_are_refused() {
    let two = "[[function]]\nname = 'f'\n[[function.drive]]\nname = 'a'\nkind = 'disk'\n";
    check_refusal(
        &format!("{two}[[function.drive]]\nname = 'a'\nkind = 'disk'\n"),
        "7:8",
        &["two drives are named \"a\""],
    );
    check_refusal(&format!("{two}{two}"), "7:8", &["two functions are named \"f\""]);
    check_refusal(
        &format!("{two}{}", two.replace("'f'", "'g'")),
        "9:8",
        &["names are shared by all functions"],
    );
    check_refusal(&two.replace("'a'", "'12'"), "4:8", &["numbers are drive indexes"]);
    for bad in
        ["''", "'a/b'", "'..'", "'-a'", "'a b'", "\"a\\u0000\"", "'é'", &format!("'{}'", "a".repeat(33))]
    {
        check_refusal(&two.replace("'a'", bad), "4:8", &["the drive's name"]);
        check_refusal(&two.replace("'f'", bad), "2:8", &["the function's name"]);
    }
}

#[test]
fn a_function_or_gadget_name_that_the_gadget_refuses_is_refused_and_a_drive_may_have_it() {
    let function = |name: &str| {
        format!("[[function]]\nname = '{name}'\n[[function.drive]]\nname = 'win.11'\nkind = 'disk'\n")
    };
    check_refusal(&function("usb.0"), "2:8", &["the function's name \"usb.0\"", "`_` and `-`"]);
    check_refusal("[gadget]\nname = 'g.1'\n", "2:8", &["the gadget's name \"g.1\""]);
    // Whatever passes here, passes there.
    for printable in ' '..='~' {
        let name = format!("a{printable}");
        if let Ok(config) = Config::parse(&function(&name), "a") {
            assert_eq!(config.functions[0].name, name);
            assert!(crate::gadget::is_name(&name), "{name:?}");
        }
    }
    let config = Config::parse(&function(&"x".repeat(32)), "a").unwrap();
    assert!(crate::gadget::is_name(&config.functions[0].name));
}

#[test]
fn drives_have_a_serial_that_fits_whatever_the_gadgets_is() {
    let written = "[[function]]\nname = 'usb0'\n[[function.drive]]\nname = 'cd'\nkind = 'optical'\n";
    for serial in ["0123456789AB", "серийный номер 7", "𝄞", &"x".repeat(126), &"é".repeat(126)]
    {
        for functions in ["", written] {
            let text = format!("[gadget]\nserial = '{serial}'\n{functions}");
            let config = Config::parse(&text, "test.toml").unwrap();
            for (index, drive) in config.functions[0].drives.iter().enumerate() {
                crate::scsi::Identity::new(&drive.vendor, &drive.product, &drive.revision, &drive.serial)
                    .unwrap_or_else(|error| panic!("{serial}: {:?}: {error}", drive.serial));
                assert!(drive.serial.ends_with(&format!("-{index}")), "{}", drive.serial);
            }
        }
    }
}

#[test]
fn too_many_or_too_few_drives_and_functions_are_refused() {
    let drives = |count| {
        (0..count).fold("[[function]]\nname = 'f'\n".to_owned(), |text, drive| {
            text + &format!("[[function.drive]]\nname = 'd{drive}'\nkind = 'disk'\n")
        })
    };
    assert_eq!(Config::parse(&drives(16), "test.toml").unwrap().functions[0].drives.len(), 16);
    check_refusal(&drives(17), "51:1", &["more than 16 drives", "another [[function]]"]);
    check_refusal(&drives(0), "1:1", &["has no drive"]);
    check_refusal("function = []", "1:1", &["list of functions is empty"]);
    let functions = |count| {
        (0..count).fold(String::new(), |text, function| {
            text + &format!(
                "[[function]]\nname = 'f{function}'\n[[function.drive]]\nname = 'd{function}'\nkind = 'disk'\n"
            )
        })
    };
    assert_eq!(Config::parse(&functions(8), "test.toml").unwrap().functions.len(), 8);
    check_refusal(&functions(9), "41:1", &["more than 8 functions"]);
}

#[test]
fn an_overlay_is_of_a_disk_with_an_image() {
    use crate::media::overlay::Place;
    let with =
        |rest: &str| Config::parse(&with_drive(rest), "a").unwrap().functions[0].drives[0].overlay.clone();
    let disk = "kind = 'disk'\nimage = '/a'\n";
    assert_eq!(with(disk), None);
    assert_eq!(with(&format!("{disk}overlay = 'tmp'")), Some(Place::Temporary));
    assert_eq!(with(&format!("{disk}overlay = '/b'")), Some(Place::File("/b".into())));
    check_refusal(&with_drive("kind = 'disk'\noverlay = '/b'"), "6:11", &["needs an image", "add image"]);
    check_refusal(
        &with_drive("kind = 'optical'\nimage = '/a'\noverlay = '/b'"),
        "7:11",
        &["cannot be written to", "kind = \"disk\""],
    );
    check_refusal(&with_drive("kind = 'disk'\nimage = '/a'\noverlay = 'b'"), "7:11", &["absolute path"]);
}

#[test]
fn how_an_image_is_taken_is_said_with_it() {
    use crate::media::qcow2::Manner;
    let with = |rest: &str| Config::parse(&with_drive(rest), "a").unwrap().functions[0].drives[0].manner;
    let disk = "kind = 'disk'\nimage = '/a'\n";
    assert_eq!(with(disk), Manner { raw: false, backing: false });
    assert_eq!(with(&format!("{disk}backing = true")), Manner { raw: false, backing: true });
    assert_eq!(with(&format!("{disk}raw = true")), Manner { raw: true, backing: false });
}

#[test]
fn a_writable_cd_is_refused_and_a_writable_disk_is_not() {
    check_refusal(
        &with_drive("kind = 'optical'\nrw = true"),
        "6:6",
        &["cannot be writable", "kind = \"disk\""],
    );
    assert!(Config::parse(&with_drive("kind = 'disk'\nrw = true"), "a").unwrap().functions[0].drives[0].rw);
    assert!(Config::parse(&with_drive("kind = 'optical'\nrw = false"), "a").is_ok());
}

#[test]
fn gadget_values_out_of_range_are_refused() {
    for (key, says) in [
        ("udc = ''", "/sys/class/udc"),
        ("udc = '../x'", "/sys/class/udc"),
        ("udc = 'a/b'", "/sys/class/udc"),
        ("vendor_id = 0", "vendor_id is 0"),
        ("device_release = 0x00a0", "binary-coded decimal"),
        ("device_release = 0xf000", "binary-coded decimal"),
        ("max_power_ma = 501", "within 2 and 500"),
        ("max_power_ma = 1", "within 2 and 500"),
        ("manufacturer = ''", "string descriptor"),
        ("product = \"a\\nb\"", "string descriptor"),
        ("name = '/'", "gadget's name"),
    ] {
        let column = key.find('=').unwrap() + 3;
        check_refusal(&format!("[gadget]\n{key}\n"), &format!("2:{column}"), &[says]);
    }
    refusal(&format!("[gadget]\nserial = '{}'\n", "𝄞".repeat(64)));
    Config::parse(&format!("[gadget]\nserial = '{}'\n", "𝄞".repeat(63)), "a").unwrap();
}

#[test]
fn a_guest_is_refused_what_it_cannot_decide() {
    assert_eq!(Config::parse("[gadget]\nmode = 'guest'\n", "a").unwrap().gadget, Gadget::Guest);
    for key in keys("[gadget]\nzzzzzzzzzzzz = 1\n").iter().filter(|key| *key != "mode") {
        let value = match key.as_str() {
            "vendor_id" | "product_id" | "device_release" | "max_power_ma" => "100",
            "max_speed" => "'high'",
            _ => "'a'",
        };
        let text = format!("[gadget]\nmode = 'guest'\n{key} = {value}\n");
        check_refusal(&text, &format!("3:{}", key.len() + 4), &[&format!("{key} has no effect")]);
    }
}

#[test]
fn an_image_may_be_a_url_whose_secrets_are_not_shown() {
    let url = "https://alice:horse@nas/a b.iso?signature=horse";
    let config = Config::parse(&with_drive(&format!("kind = 'disk'\nimage = '{url}'")), "test.toml").unwrap();
    let image = &config.functions[0].drives[0].image;
    assert_eq!(*image, Some(StartImage::Url(Secret(url.to_owned()))));
    assert!(!format!("{config:?}").contains("horse"));
}

#[test]
fn paths_must_be_absolute_and_a_socket_path_short() {
    check_refusal("[control]\nsocket = 'run/a'\n", "2:10", &["not an absolute path"]);
    check_refusal(&with_drive("kind = 'disk'\nimage = 'a.img'"), "6:9", &["not an absolute path"]);
    check_refusal(
        &with_drive("kind = 'disk'\nimage = 'ftp://nas/secret.img'"),
        "6:9",
        &["image is no URL that can be used: it is neither http:// nor https://"],
    );
    check_refusal(
        "[[function]]\nname = 'f'\nmount = ''\n[[function.drive]]\nname = 'a'\nkind = 'disk'\n",
        "3:9",
        &["mount is not an absolute path"],
    );
    let socket = |len: usize| format!("[control]\nsocket = '/{}'\n", "s".repeat(len - 1));
    Config::parse(&socket(107), "a").unwrap();
    check_refusal(&socket(108), "2:10", &["longer than the 107 bytes"]);
}

#[test]
fn what_no_cache_could_be_is_refused() {
    let url = Config::parse("", "a").unwrap().url;
    assert_eq!((url.dir.as_path(), url.limit, url.rate), (Path::new("/var/cache/ringdrive"), 8 << 30, None));
    let url = Config::parse("[url]\nrate_limit_kib = 3\nconnections = 16\n", "a").unwrap().url;
    assert_eq!((url.rate, url.connections), (Some(3 << 10), 16));
    for (key, says) in [
        ("cache = 'a'", "not an absolute path"),
        ("credentials = 'a'", "not an absolute path"),
        ("ca_file = 'a'", "not an absolute path"),
        ("cache_limit_mib = 7", "not within 8"),
        ("rate_limit_kib = 0", "not within 1"),
        ("connections = 17", "not within 1 and 16"),
        ("proxy = 'proxy:3128'", "http://HOST:PORT"),
        ("proxy = 'https://proxy'", "http://HOST:PORT"),
    ] {
        let column = key.find('=').unwrap() + 3;
        check_refusal(&format!("[url]\n{key}\n"), &format!("2:{column}"), &[says]);
    }
}

#[test]
fn a_serial_is_made_of_hexadecimal_digits_and_stays() {
    let serial = machine_serial();
    assert_eq!(serial, machine_serial());
    assert!(serial.len() == 12 && serial.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)));
}

#[test]
fn files_that_are_no_configuration_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Config::load(&dir.path().join("none")).unwrap_err();
    assert!(
        matches!(missing, ConfigError::Read { ref source, .. } if source.kind() == io::ErrorKind::NotFound)
    );
    assert!(matches!(Config::load(dir.path()), Err(ConfigError::Read { .. })));
    assert!(matches!(Config::load(Path::new("/dev/zero")), Err(ConfigError::TooLong { .. })));
    let file = dir.path().join("a.toml");
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    assert!(matches!(Config::load(&file), Err(ConfigError::Read { .. })));
    std::fs::write(&file, "[control]\nx = 1\n").unwrap();
    assert!(Config::load(&file).unwrap_err().to_string().contains("a.toml:2:1: "));
}

#[test]
fn scheduling_is_parsed_once_and_what_no_kernel_could_do_is_refused() {
    let with = |keys: &str| {
        format!("[[function]]\nname = 'a'\n{keys}\n[[function.drive]]\nname = 'b'\nkind = 'disk'\n")
    };
    let schedule = |keys: &str| Config::parse(&with(keys), "test.toml").unwrap().functions[0].schedule;
    assert_eq!(schedule(""), Schedule::default());
    let asked = schedule("realtime_priority = 99\ncpus = [2, 3]");
    assert_eq!(asked, Schedule { realtime: RealtimePriority::new(99), cpus: Cpus::new([3, 2]) });
    assert!(asked.realtime.is_some() && asked.cpus.is_some());
    for priority in ["0", "100"] {
        check_refusal(&with(&format!("realtime_priority = {priority}")), "3:21", &["within 1 and 99"]);
    }
    check_refusal(&with("realtime_priority = 256"), "3:", &["256", "u8"]);
    for cpus in ["[]", "[0, 1024]"] {
        check_refusal(&with(&format!("cpus = {cpus}")), "3:8", &["from 0 to 1023", "[2, 3]"]);
    }
    check_refusal(&with("cpus = [-1]"), "3:", &["-1"]);
}
