{
  description = "sower's sample application: a small web server in Haskell";

  # No inputs, and nixpkgs least of all: what is needed comes from the machine's own /usr, so that the
  # build runs where no substituter can be reached. An application of yours has inputs; the runner does
  # not care.
  outputs = { self }:
    let
      # Each derivation sees only the files it needs, so that a commit elsewhere does not rebuild it.
      file = path: builtins.path { inherit path; name = baseNameOf path; };
      build = name: script: more: derivation ({
        inherit name;
        system = "x86_64-linux";
        builder = "/bin/sh";
        args = [ "-eu" (file script) ];
        PATH = "/usr/bin:/bin";
        LANG = "C.UTF-8";
      } // more);
      application = "greeter";
    in
    {
      packages.x86_64-linux = rec {
        # The machine's GHC as a store path with a static archive of its own.
        ghc = build "ghc-9.0.2" ./nix/ghc.sh { };

        # The program, linked statically.
        default = build application ./nix/application.sh {
          inherit ghc application;
          source = builtins.path { path = ./src; name = "source"; };
        };

        # The image: a gzip'd docker-archive with one layer, as `dockerTools.buildImage` makes them.
        docker = build "docker-image-${application}.tar.gz" ./nix/image.sh {
          inherit application;
          program = default;
          busybox = build "busybox" ./nix/busybox.sh { };
        };
      };
    };
}
