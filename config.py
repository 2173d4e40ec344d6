"""Settings of virt-rbd-backup: edit here, or name a file of your own with --config FILE.

A file of your own holds only the constants that differ; it may be readable by its owner alone.
`main.py check` tells whether everything fits together.
"""

# --- Where the domains and their images are -----------------------------------------------------

# libvirt's connection URI, or a list of them, such as ["qemu+ssh://root@node1/system", ...] on a
# backup host of its own. A domain that several of them define is saved once, where it runs.
LIBVIRT_URI = "qemu:///system"

# Seconds that one call of libvirt may take before it counts as failed. It answers in milliseconds, or
# hangs. What a guest agent is given (a third of FREEZE_TIMEOUT) comes on top.
LIBVIRT_TIMEOUT = 60

# Ceph's configuration file: monitors and keyring, for whatever a domain's own XML does not say.
CEPH_CONF = "/etc/ceph/ceph.conf"

# The cephx user, with its keyring where CEPH_CONF says, that `restore` makes images as. Backups don't use
# it: they read each image as its domain's own user.
CEPH_USER = "admin"

# Seconds that one operation on Ceph may take before it counts as failed. Ceph itself waits for
# ever. Raise it for clusters that stall for longer during recovery.
CEPH_TIMEOUT = 60

# Seconds that the cluster may be silent outside the moment of the snapshots: what timed out (CEPH_TIMEOUT) is
# retried for so long, then the domain's backup fails; 0: nothing is retried. Raise it for clusters that are
# silent for longer, during maintenance for instance.
CEPH_STALL_TIMEOUT = 900

# --- What is backed up --------------------------------------------------------------------------

# Glob patterns for domain names or UUIDs; a domain is backed up when one of INCLUDE_DOMAINS
# matches and none of EXCLUDE_DOMAINS does.
INCLUDE_DOMAINS = ["*"]
EXCLUDE_DOMAINS = []

# Glob patterns for images ("pool/name", "pool/namespace/name") that are left out. The restore
# point then holds the domain without those disks, and says so.
EXCLUDE_IMAGES = []

# A disk that is on no RBD image (a file, a volume of LVM). "report": the domain is saved without it,
# and list, the log and the manifest say so. "fail": the domain's backup fails, unless its metadata
# excludes the disk. An RBD image that can't be saved always fails its domain.
UNCOVERED_DISKS = "report"

# Seconds since a domain was last saved, by whichever node, within which it is not saved again;
# 0: always save. Set it to a little less than the timer's interval where a cluster manager defines
# the same domain on several nodes. Domains that are named on the command line are always saved.
MIN_AGE = 0

# Domains that are backed up at the same time. Each costs one core in restic and up to 300 MB.
WORKERS = 3

# --- How a running domain is held still for the moment of its snapshots --------------------------

# "auto": freeze its file systems where a guest agent answers, otherwise see WITHOUT_FREEZE.
# "required": without a freeze a running domain's backup fails.
# "never": don't ask the agent.
FREEZE = "auto"

# What to do with a running domain that is not frozen. "pause": hold its processors for the moment
# of the snapshots (all disks are of one instant, like after a power cut). "crash": take the disks
# as they run (each disk is of its own instant; databases across disks may not survive it).
WITHOUT_FREEZE = "pause"

# Seconds that a guest may stand still. If the snapshots are not all there by then, it is let go
# and the domain's backup fails.
FREEZE_TIMEOUT = 30

# --- Load ---------------------------------------------------------------------------------------

# Bytes per second that each image is read with at the most; 0: no limit.
MAX_READ_RATE = 0

# Which OSDs are read from. "": each object's primary, as guests do (or what the cluster's configuration
# file says). "balance": any replica, which spreads the load. "localize": the nearest replica, for nodes
# whose crush_location the configuration file names.
REPLICA_READS = ""

# Snapshots that are deleted at the same time, by all workers together. The OSDs then free the space of
# what guests have overwritten meanwhile, which is work for them.
SNAPSHOT_DELETES = 2

# --- Where backups go ---------------------------------------------------------------------------

# The module of outputs/ that takes them. "restic": each image is streamed whole into restic, which stores
# what is new of it. "restic_incremental": only what has changed since the last run is read. For that each
# image keeps the last run's snapshot until the next, and the node needs /dev/fuse and python3-pyfuse3. Both
# can have the same repository, and be changed for each other at any time; see README, "Reading only changes".
OUTPUT = "restic"

# For "restic_incremental". Days after which an image is read as a whole again, whatever is said to have
# changed; 0: never. Each run also compares a random sample.
FULL_READ_DAYS = 30

# For "restic_incremental". True: take what has changed from the images' object maps (feature fast-diff), in
# an instant for any size, where they are valid. Ceph's have had errors (trackers 42248, 53784, 53885, 61616):
# only with a librbd that has these mended. False: ask for each object, some 20 s per TiB.
FAST_DIFF = False

# The restic program: a name on PATH, or a path.
RESTIC_BINARY = "restic"

# The repository, as restic's own RESTIC_REPOSITORY takes it: a path, "sftp:...", "s3:...".
RESTIC_REPOSITORY = ""

# A file with the repository's password, readable by its owner alone. "" if RESTIC_ENVIRONMENT
# names the password in another of restic's ways (RESTIC_PASSWORD_COMMAND, RESTIC_PASSWORD).
RESTIC_PASSWORD_FILE = "/etc/virt-rbd-backup/restic-password"

# Further environment variables for restic, such as the back end's access keys.
RESTIC_ENVIRONMENT = {}

# Further options for every call of restic, such as ["--limit-upload=50000", "--no-cache"].
RESTIC_OPTIONS = []

# Seconds without progress after which the output counts as stalled and the domain's backup fails:
# no byte taken, or, after the last one, no end. restic itself retries a back end for 15 minutes.
OUTPUT_STALL_TIMEOUT = 1200

# Seconds to wait for another program that has the repository to itself, such as `restic prune`; then the
# domain's backup fails. The guests run meanwhile, the snapshots are kept.
LOCK_WAIT = 3600

# Seconds for which a domain is tried again, at the end of the run, whose error may be transient: a
# connection that broke, a time-out, a stall, a lock. At once, then after pauses that grow, and for the last
# time when these seconds are over. 0: once, at once.
RETRY_FOR = 300

# --- Proving that it comes back -----------------------------------------------------------------

# The pool, or pool/namespace, that `main.py drill` restores a domain into for as long as it takes. It needs
# room for the largest domain. CEPH_USER makes the images; for --boot the domain's own user has to reach them.
DRILL_POOL = ""

# Seconds that `main.py drill --boot` waits for the guest agent of the domain that it boots.
DRILL_BOOT_TIMEOUT = 300

# --- What is left on this node ------------------------------------------------------------------

# Directory (mode 0700) with the run's lock and the notes of what is being frozen. It must not
# survive a reboot: a guest does not either.
RUNTIME_DIR = "/run/virt-rbd-backup"

# Directory for what is to be known after a reboot too: when each domain was last verified and drilled.
STATE_DIR = "/var/lib/virt-rbd-backup"

# Seconds after which the cluster forgets a domain's lock whose node died. The lock is renewed
# three times within them.
LOCK_DURATION = 120

# Days for which the reports of past runs are kept in STATE_DIR, for `main.py report`.
REPORT_DAYS = 35

# File that each run's report is written to, as JSON, whatever came of the run; "": none.
REPORT_FILE = ""

# File for Prometheus, by node_exporter's textfile collector, that tells how each domain and the last run are,
# such as "/var/lib/prometheus/node-exporter/virt-rbd-backup.prom"; "": none. Needs python3-prometheus-client.
METRICS_FILE = ""

# Seconds between two lines that tell how far a job is, in the journal and on terminals that can't show the
# live view; 0: none.
PROGRESS_INTERVAL = 60

# --- Telling somebody, and the admin's own steps ------------------------------------------------

# A program that gets each run's report, as JSON, on its standard input when the run ends: a list of its path
# and its arguments, such as ["/opt/virt-rbd-backup/res/notify-mail", "root"]; []: none.
NOTIFY_COMMAND = []

# When it is told: "always"; "failure": when the exit code is not 0; "change": when something fails that did
# not the last time, or works again.
NOTIFY_ON = "failure"

# Seconds after which it is ended.
NOTIFY_TIMEOUT = 60

# A URL that is asked for when a run ends: as it is when all went well, with "/fail" after it otherwise, as
# healthchecks.io and its likes have it; "": none. Who knows it can forge it: it is never shown.
PING_URL = ""

# Directory with programs to run: before-run.d, before-freeze.d, after-thaw.d, after-job.d, after-run.d. They
# run as root; see README, "Hooks". "": none.
HOOKS = ""

# Seconds that each hook may take before it is ended and counts as failed.
HOOK_TIMEOUT = 60
