//! Who may use the socket.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, getgrouplist};

/// Root, the daemon's own user, and a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permission {
    pub(super) own: Uid,
    pub(super) group: Option<Gid>,
}

impl Permission {
    /// Whether a peer with these credentials may. `groups` looks up all groups of a user, and is asked only where the
    /// answer hangs on it.
    pub(super) fn allows(self, uid: Uid, gid: Gid, groups: impl FnOnce(Uid) -> Vec<Gid>) -> bool {
        uid.is_root()
            || uid == self.own
            || self.group.is_some_and(|group| group == gid || groups(uid).contains(&group))
    }
}

/// Groups from the user database; none for a user who is not in it.
pub(super) fn groups_of(uid: Uid) -> Vec<Gid> {
    let Ok(Some(user)) = User::from_uid(uid) else { return Vec::new() };
    let Ok(name) = CString::new(user.name) else { return Vec::new() };
    getgrouplist(&name, user.gid).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Gid = Gid::from_raw(500);
    const RULE: Permission = Permission { own: Uid::from_raw(7), group: Some(GROUP) };

    fn allows(rule: Permission, uid: u32, gid: u32, groups: &[u32]) -> bool {
        let groups = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        rule.allows(Uid::from_raw(uid), Gid::from_raw(gid), |_| groups)
    }

    #[test]
    fn root_and_the_daemons_user_may_without_a_look_into_the_user_database() {
        for uid in [0, 7] {
            let rule = Permission { group: None, ..RULE };
            assert!(rule.allows(Uid::from_raw(uid), Gid::from_raw(9), |_| panic!("looked up")));
        }
    }

    #[test]
    fn others_may_only_as_members_of_the_group() {
        assert!(allows(RULE, 1000, 500, &[]));
        assert!(allows(RULE, 1000, 1000, &[1000, 500]));
        assert!(!allows(RULE, 1000, 1000, &[1000, 501]));
        assert!(
            !allows(Permission { group: None, ..RULE }, 1000, 0, &[0, 500]),
            "group root is not user root"
        );
    }

    #[test]
    fn groups_come_from_the_user_database() {
        assert!(groups_of(Uid::from_raw(0)).contains(&Gid::from_raw(0)));
        assert_eq!(groups_of(Uid::from_raw(u32::MAX - 7)), []);
    }
}
